#include "sage/policy/online_cost.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sage::policy {
namespace {

// Seconds per unit where nothing is known: the size of an 8B model's steps on one accelerator. They only scale the
// least squares; the coefficients found may be any multiple.
constexpr std::array kNominalDecode{1e-2, 3e-5, 1e-7};
constexpr std::array kNominalMixed{1e-2, 5e-5, 2e-7, 3e-9, 1e-5};
// A known regime's observation counts at most this many times off the prior: stalls are not speed.
constexpr double kMaxRatio = 10;
// Weight of the nominal values, in observations.
constexpr double kNominalWeight = 1e-4;

std::array<double, 3> decode_coefficients(const StepCost& cost) { return {cost.a0, cost.a1, cost.a2}; }
std::array<double, 5> mixed_coefficients(const StepCost& cost) {
    return {cost.m0, cost.m1, cost.m2, cost.m3, cost.m4};
}

bool is_any_set(std::span<const double> values) {
    return std::any_of(values.begin(), values.end(), [](double value) { return value > 0; });
}

// The host's overhead cannot be told from the step's constant: one coefficient.
StepCost without_host(StepCost cost) {
    cost.a0 += is_any_set(decode_coefficients(cost)) ? cost.host : 0;
    cost.m0 += is_any_set(mixed_coefficients(cost)) ? cost.host : 0;
    cost.host = 0;
    return cost;
}

BoundedLeastSquares least_squares(std::span<const double> prior, const OnlineCostOptions& options) {
    if (!is_any_set(prior)) {
        return {prior.size(), {options.forgetting, kNominalWeight, 0, std::numeric_limits<double>::infinity()}};
    }
    const auto num_set = std::count_if(prior.begin(), prior.end(), [](double value) { return value > 0; });
    return {
        static_cast<std::size_t>(num_set),
        {options.forgetting, options.prior_weight, options.lowest, options.highest}};
}

SpeedFactor speed_factor(const OnlineCostOptions& options) {
    SpeedFactor::Options factor;
    factor.forgetting = options.forgetting;
    factor.lowest = options.lowest;
    factor.highest = options.highest;
    return SpeedFactor(factor);
}

}  // namespace

OnlineCost::Part::Part(std::span<const double> prior, const OnlineCostOptions& options)
    : is_known(is_any_set(prior)), squares(least_squares(prior, options)), factor(speed_factor(options)) {
    const std::span<const double> nominal =
        prior.size() == kNominalDecode.size() ? std::span<const double>(kNominalDecode) : kNominalMixed;
    for (std::size_t i = 0; i < prior.size(); ++i) {
        if (!is_known || prior[i] > 0) {
            columns[num_columns] = static_cast<std::uint8_t>(i);
            unit[num_columns++] = is_known ? prior[i] : nominal[i];
        }
    }
}

OnlineCost::OnlineCost(const StepCost& prior, const OnlineCostOptions& options)
    : prior_(without_host(prior)),
      decode_(decode_coefficients(prior_), options),
      mixed_(mixed_coefficients(prior_), options),
      cost_(prior_) {}

void OnlineCost::observe_decode(double decoding, double resident, double seconds) {
    observe(decode_, {1, decoding, resident}, seconds);
}

void OnlineCost::observe_mixed(double prefill, double decoding, double resident, double work, double seconds) {
    observe(mixed_, {1, prefill + decoding, resident, work, decoding}, seconds);
}

void OnlineCost::observe_batch(double tokens, double items, double seconds) {
    observe(mixed_, {1, tokens, 0, 0, items}, seconds);
}

void OnlineCost::observe_scale(Regime regime, double predicted, double actual) {
    (regime == Regime::decode ? decode_ : mixed_).factor.observe(predicted, actual);
    is_stale_ = true;
}

const StepCost& OnlineCost::cost() const {
    if (is_stale_) {
        const auto [a0, a1, a2] = decode_coefficients(prior_);
        const Vector decode = coefficients(decode_, {a0, a1, a2});
        const Vector mixed = coefficients(mixed_, mixed_coefficients(prior_));
        cost_ = {decode[0], decode[1], decode[2], mixed[0], mixed[1], mixed[2], mixed[3], mixed[4], 0};
        is_stale_ = false;
    }
    return cost_;
}

std::uint64_t OnlineCost::num_observed(Regime regime) const {
    return part(regime).num_steps + part(regime).factor.num_observed();
}

// Rows are divided by the prior's prediction, so that they sum to 1 and the error is relative.
void OnlineCost::observe(Part& part, const Vector& inputs, double seconds) {
    Vector row{};
    double expected = 0;
    for (std::size_t i = 0; i < part.num_columns; ++i) {
        row[i] = part.unit[i] * inputs[part.columns[i]];
        expected += row[i];
    }
    if (!(seconds > 0 && std::isfinite(seconds) && expected > 0 && std::isfinite(expected))) {
        return;
    }
    for (double& value : row) {
        value /= expected;
    }
    const double ratio = seconds / expected;
    part.squares.observe(row, part.is_known ? std::clamp(ratio, 1 / kMaxRatio, kMaxRatio) : ratio);
    ++part.num_steps;
    is_stale_ = true;
}

OnlineCost::Vector OnlineCost::coefficients(const Part& part, const Vector& prior) {
    Vector found{};
    if (part.num_steps == 0) {
        for (std::size_t i = 0; i < prior.size(); ++i) {
            found[i] = prior[i] * part.factor.value();
        }
        return found;
    }
    const Vector multiples = part.squares.solve();
    for (std::size_t i = 0; i < part.num_columns; ++i) {
        found[part.columns[i]] = part.unit[i] * multiples[i];
    }
    return found;
}

}  // namespace sage::policy
