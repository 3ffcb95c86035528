// See scenario.hpp.
#include "sage/simulator/scenario.hpp"

#include <stdexcept>
#include <string>

namespace sage::simulator {

namespace {

[[noreturn]] void refuse(const std::string& what, const std::string& found, const std::string& expected) {
    throw std::invalid_argument("workload: " + what + " is " + found + "; expected " + expected);
}

std::string entry(const char* column, std::size_t row) { return std::string(column) + "[" + std::to_string(row) + "]"; }

template <typename T>
void require_size(std::span<const T> column, std::size_t expected, const char* name) {
    if (column.size() == expected) return;
    refuse("size of " + std::string(name), std::to_string(column.size()), std::to_string(expected));
}

// Offsets of slices of a column with `size` entries.
void require_offsets(std::span<const std::uint32_t> offsets, std::size_t size, bool may_be_empty, const char* name) {
    if (offsets.front() != 0) refuse(entry(name, 0), std::to_string(offsets.front()), "0");
    for (std::size_t i = 1; i < offsets.size(); ++i) {
        const std::uint32_t lowest = offsets[i - 1] + (may_be_empty ? 0U : 1U);
        if (offsets[i] < lowest) {
            refuse(entry(name, i), std::to_string(offsets[i]), "at least " + std::to_string(lowest));
        }
    }
    if (offsets.back() != size) {
        refuse(entry(name, offsets.size() - 1), std::to_string(offsets.back()), std::to_string(size));
    }
}

template <typename T>
void require_positive(std::span<const T> column, const char* name) {
    for (std::size_t i = 0; i < column.size(); ++i) {
        if (column[i] == 0) refuse(entry(name, i), "0", "at least 1");
    }
}

// False for NaN, too.
void require_not_negative(std::span<const double> column, const char* name) {
    for (std::size_t i = 0; i < column.size(); ++i) {
        if (!(column[i] >= 0)) refuse(entry(name, i), std::to_string(column[i]), "0 or more");
    }
}

}  // namespace

void Workload::validate() const {
    require_size(tenant, num_runs(), "tenant");
    require_size(tier, num_runs(), "tier");
    require_size(may_shed, num_runs(), "may_shed");
    require_size(budget, num_runs(), "budget");
    require_size(stage_start, num_runs() + 1, "stage_start");
    require_offsets(stage_start, num_stages(), false, "stage_start");
    require_size(prompt_tokens, num_stages(), "prompt_tokens");
    require_size(output_tokens, num_stages(), "output_tokens");
    require_size(max_tokens, num_stages(), "max_tokens");
    require_size(items, num_stages(), "items");
    require_size(ttft_slo, num_stages(), "ttft_slo");
    require_size(tpot_slo, num_stages(), "tpot_slo");
    require_size(e2e_slo, num_stages(), "e2e_slo");
    require_size(downstream, num_stages(), "downstream");
    require_size(route, num_stages(), "route");
    require_size(block_start, num_stages() + 1, "block_start");
    require_offsets(block_start, blocks.size(), true, "block_start");
    double before = -std::numeric_limits<double>::max();
    for (std::size_t run = 0; run < num_runs(); ++run) {
        if (!(arrival[run] >= before && arrival[run] <= std::numeric_limits<double>::max())) {
            refuse(entry("arrival", run), std::to_string(arrival[run]), "finite times that ascend");
        }
        before = arrival[run];
        if (tier[run] > static_cast<std::uint8_t>(policy::Tier::batch)) {
            refuse(entry("tier", run), std::to_string(tier[run]), "0, 1 or 2");
        }
    }
    require_positive(prompt_tokens, "prompt_tokens");
    require_positive(items, "items");
    require_not_negative(budget, "budget");
    require_not_negative(ttft_slo, "ttft_slo");
    require_not_negative(tpot_slo, "tpot_slo");
    require_not_negative(e2e_slo, "e2e_slo");
    require_not_negative(downstream, "downstream");
}

}  // namespace sage::simulator
