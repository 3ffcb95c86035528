#include "sage/policy/configured_policy.hpp"

#include <algorithm>

namespace sage::policy {

void ConfiguredPolicy::handle(const Event& event, double now, std::vector<Command>& commands) {
    const std::size_t from = commands.size();
    Pool* pool = take(event, now, commands);
    if (event.kind == EventKind::timer) {
        timer_at_ = kNever;
        for (const PoolId id : order_) {
            pools_.at(id)->pump(now, commands);
        }
    } else if (pool != nullptr) {
        pool->pump(now, commands);
    }
    if (shared_.config.scale_hint_interval > 0 && now >= next_hint_) {
        next_hint_ = now + shared_.config.scale_hint_interval;
        for (const PoolId id : order_) {
            pools_.at(id)->scale_hint(now, commands);
        }
    }
    forget(commands, from);
    arm(commands);
}

// Bring the event to its pool; return the pool whose queue may move now.
Pool* ConfiguredPolicy::take(const Event& event, double now, std::vector<Command>& commands) {
    switch (event.kind) {
        case EventKind::submitted: {
            const auto at = pools_.find(event.request->pool);
            if (at == pools_.end()) {
                Command command;
                command.kind = CommandKind::shed;
                command.id = event.request->id;
                command.pool = event.request->pool;
                command.code = ShedCode::overloaded;
                command.retry_after = 1;
                command.decision.reason = "nothing serves this pool now";
                commands.push_back(std::move(command));
                return nullptr;
            }
            if (where_.emplace(event.request->id, event.request->pool).second) {
                at->second->submit(*event.request, now, commands);
            }
            return at->second.get();
        }
        case EventKind::first_token: {
            Pool* pool = pool_of(event.id);
            if (pool != nullptr) {
                pool->first_token(event.id, event.num_cached, now);
            }
            return pool;
        }
        case EventKind::progressed: {
            if (Pool* pool = pool_of(event.id)) {
                pool->progressed(event.id, event.num_tokens, now);
            }
            return nullptr;
        }
        case EventKind::finished: {
            Pool* pool = pool_of(event.id);
            if (pool != nullptr && pool->finish(event.id, event.num_tokens, now)) {
                where_.erase(event.id);
            }
            return pool;
        }
        case EventKind::cancelled: {
            Pool* pool = pool_of(event.id);
            if (pool != nullptr) {
                pool->cancel(event.id, now, commands);
            }
            return pool;
        }
        case EventKind::instance_up: {
            std::unique_ptr<Pool>& pool = pools_[event.instance->pool];
            if (pool == nullptr) {
                pool = make_pool(*event.instance, shared_);
                order_.push_back(event.instance->pool);
            }
            static const std::vector<RequestId> none;
            const std::vector<RequestId>& running = event.running == nullptr ? none : *event.running;
            for (const RequestId id : running) {
                where_.emplace(id, event.instance->pool);
            }
            pool->instance_up(*event.instance, running, now, commands);
            return pool.get();
        }
        case EventKind::instance_down: {
            const auto at = pools_.find(event.pool);
            if (at == pools_.end()) {
                return nullptr;
            }
            at->second->instance_down(event.instance_id, event.is_lost, commands);
            return at->second.get();
        }
        case EventKind::telemetry: {
            if (const auto at = pools_.find(event.pool); at != pools_.end()) {
                at->second->telemetry(event, now);
            }
            return nullptr;
        }
        case EventKind::pool_closed:
            pools_.erase(event.pool);
            std::erase(order_, event.pool);
            std::erase_if(where_, [&](const auto& item) { return item.second == event.pool; });
            return nullptr;
        case EventKind::started:
        case EventKind::timer:
            return nullptr;
    }
    return nullptr;
}

Pool* ConfiguredPolicy::pool_of(RequestId id) {
    const auto at = where_.find(id);
    return at == where_.end() ? nullptr : pools_.at(at->second).get();
}

void ConfiguredPolicy::forget(const std::vector<Command>& commands, std::size_t from) {
    for (std::size_t i = from; i < commands.size(); ++i) {
        if (commands[i].kind == CommandKind::shed) {
            where_.erase(commands[i].id);
        }
    }
}

void ConfiguredPolicy::arm(std::vector<Command>& commands) {
    double earliest = kNever;
    for (const PoolId id : order_) {
        earliest = std::min(earliest, pools_.at(id)->next_wake());
    }
    if (earliest == kNever || earliest == timer_at_) {
        return;
    }
    timer_at_ = earliest;
    Command command;
    command.kind = CommandKind::set_timer;
    command.at = earliest;
    commands.push_back(std::move(command));
}

std::size_t ConfiguredPolicy::num_queued(PoolId pool) const {
    const auto at = pools_.find(pool);
    return at == pools_.end() ? 0 : at->second->num_queued();
}

}  // namespace sage::policy
