// Edge cases and long runs of the parts that policies are made of, meant to run under ASan and UBSan. Values are
// checked against Python twins in tests/unit/sage_policy.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "sage/policy/bounded_least_squares.hpp"
#include "sage/policy/knee.hpp"
#include "sage/policy/length_histogram.hpp"
#include "sage/policy/online_cost.hpp"
#include "sage/policy/prefix_index.hpp"
#include "sage/policy/quantile_factor.hpp"
#include "sage/policy/speed_factor.hpp"

using namespace sage::policy;

namespace {

int num_failed = 0;

void check(bool holds, const char* claim, int line) {
    if (!holds) {
        std::fprintf(stderr, "policy_parts_test.cpp:%d: does not hold: %s\n", line, claim);
        ++num_failed;
    }
}

template <typename Call>
void check_refused(Call call, const char* claim, int line) {
    try {
        call();
    } catch (const std::invalid_argument&) {
        return;
    }
    check(false, claim, line);
}

#define CHECK(claim) check((claim), #claim, __LINE__)
#define CHECK_REFUSED(expression) check_refused([&] { (void)(expression); }, #expression " is refused", __LINE__)

using Blocks = std::vector<std::uint64_t>;

// Chains that share their beginnings, as prompts with one system prompt do.
Blocks some_chain(std::mt19937_64& random) {
    Blocks blocks;
    std::uint64_t hash = random() % 5;
    for (std::uint64_t length = random() % 40; length > 0; --length) {
        hash = hash * 6364136223846793005ULL + 1 + random() % 2;
        blocks.push_back(hash);
    }
    return blocks;
}

void block_tables_agree_through_a_long_random_life() {
    std::mt19937_64 random(1);
    PrefixIndex index(64);
    std::vector<std::uint32_t> matched;
    for (int turn = 0; turn < 30'000; ++turn) {
        const auto instance = static_cast<InstanceId>(random() % 150);
        const Blocks blocks = some_chain(random);
        switch (random() % 16) {
            case 0: index.remove_instance(instance); break;
            case 1: index.add_instance(instance, 1 + random() % 100); break;
            case 2: index.add_instance(instance); break;
            default: index.insert(instance, blocks);
        }
        if (turn % 10 == 0) {
            index.match_all(blocks, matched);
            for (InstanceId other = 0; other < 150; ++other) {
                const std::uint32_t slot = index.slot(other);
                CHECK(index.matched(other, blocks) == (slot == PrefixIndex::kNoSlot ? 0 : matched.at(slot)));
                CHECK(index.num_blocks(other) <= 100);
            }
        }
    }
    for (InstanceId instance = 0; instance < 150; ++instance) {
        index.remove_instance(instance);
    }
    CHECK(index.num_blocks() == 0);
}

void hashes_that_collide_in_the_table_are_told_apart() {
    // Multiples of the inverse of the table's multiplier share their upper bits, and with them their home.
    PrefixIndex index;
    index.add_instance(0, 32);
    Blocks blocks;
    for (std::uint64_t i = 0; i < 32; ++i) {
        blocks.push_back(i * 0xF1DE83E19937733DULL);
    }
    index.insert(0, blocks);
    CHECK(index.matched(0, blocks) == 32);
    index.insert(0, Blocks{1, 2, 3, 4, 5, 6, 7});
    CHECK(index.matched(0, blocks) == 25);
    CHECK(index.num_blocks() == 32);
}

void a_block_may_have_the_hash_zero_and_come_twice() {
    PrefixIndex index;
    index.add_instance(0, 4);
    index.insert(0, Blocks{0, 0, 5});
    CHECK(index.matched(0, Blocks{0, 0, 5, 6}) == 3);
    CHECK(index.num_blocks(0) == 2);
}

void an_instance_may_shrink_and_grow() {
    PrefixIndex index;
    index.add_instance(9, 8);
    const Blocks blocks{1, 2, 3, 4, 5, 6, 7, 8};
    index.insert(9, blocks);
    const std::uint32_t slot = index.slot(9);
    CHECK(index.add_instance(9, 3) == slot);
    CHECK(index.matched(9, blocks) == 3);
    index.add_instance(9, 8);
    index.insert(9, blocks);
    CHECK(index.matched(9, blocks) == 8);
}

void lengths_at_the_ends_of_the_range_are_counted() {
    LengthHistogram histogram;
    const auto most = std::numeric_limits<std::uint32_t>::max();
    for (int turn = 0; turn < 1000; ++turn) {
        histogram.record(most, std::numeric_limits<std::uint64_t>::max(), most, turn % 2 == 0 ? 0 : most);
    }
    CHECK(histogram.quantile(most, std::numeric_limits<std::uint64_t>::max(), most, 0.4) <= 1);
    CHECK(histogram.quantile(0, 0, most, 1) == LengthHistogram::edges().back());
    CHECK(histogram.quantile(0, 0, 0, 0.5, 0, most) == most);
    CHECK(histogram.mean(0, 0, 0, 0, most) == most);
    CHECK(std::isfinite(histogram.quantile(0, 0, 0, 7)));
}

void least_squares_survive_a_million_degenerate_rows() {
    BoundedLeastSquares squares(5, {0.995, 1, 0.3, 3});
    for (int turn = 0; turn < 1'000'000; ++turn) {
        const double scale = turn % 3 == 0 ? 1e-12 : 1;
        squares.observe(std::vector<double>{scale, scale, scale, 0, scale * 1e-9}, turn % 2 == 0 ? 0 : 10);
    }
    for (const double coefficient : squares.solve()) {
        CHECK(coefficient >= 0.3 && coefficient <= 3);
    }
}

void a_cost_stays_finite_through_a_million_steps() {
    std::mt19937_64 random(2);
    std::uniform_real_distribution<double> some(0, 1);
    OnlineCost cost({1e-2, 3e-5, 1e-7, 1e-2, 5e-5, 2e-7, 3e-9, 1e-5, 1e-3});
    for (int turn = 0; turn < 1'000'000; ++turn) {
        const double prefill = some(random) * 2048;
        cost.observe_mixed(prefill, some(random) * 200, some(random) * 1e5, prefill * 1000, some(random));
        if (turn % 1000 == 0) {
            const sage::StepCost& found = cost.cost();
            CHECK(found.m0 > 0 && found.m0 <= 3 * 1.1e-2 * (1 + 1e-9));
            CHECK(std::isfinite(found.mixed(1000, 50, 1e4, 1e6)));
        }
    }
}

void options_out_of_range_are_refused() {
    CHECK_REFUSED(QuantileFactor({.q = 1}));
    CHECK_REFUSED(QuantileFactor({.lowest = 2}));
    CHECK_REFUSED(SpeedFactor({.forgetting = 1}));
    CHECK_REFUSED(SpeedFactor({.highest = 0.5}));
    CHECK_REFUSED(LengthHistogram({.decay = 2}));
    CHECK_REFUSED(BoundedLeastSquares(6, {}));
    CHECK_REFUSED(BoundedLeastSquares(2, {.lowest = 2}));
    CHECK_REFUSED(OnlineCost({}, {.forgetting = 0}));
}

void the_knee_of_an_unknown_cost_is_the_limit() { CHECK(knee_tokens({}, 0, 512) == 512); }

}  // namespace

int main() {
    block_tables_agree_through_a_long_random_life();
    hashes_that_collide_in_the_table_are_told_apart();
    a_block_may_have_the_hash_zero_and_come_twice();
    an_instance_may_shrink_and_grow();
    lengths_at_the_ends_of_the_range_are_counted();
    least_squares_survive_a_million_degenerate_rows();
    a_cost_stays_finite_through_a_million_steps();
    options_out_of_range_are_refused();
    the_knee_of_an_unknown_cost_is_the_limit();
    return num_failed == 0 ? 0 : 1;
}
