#include "sage/policy/speed_factor.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sage::policy {
namespace {

// A log ratio counts for at most this distance from the factor (a ratio of e): stalls are not speed.
constexpr double kMaxInnovation = 1.0;
// The quick mean of n ratios wavers by sigma / sqrt(n); beyond this many times that, the speed has changed.
constexpr double kMaxDeviations = 4.0;

}  // namespace

SpeedFactor::SpeedFactor(const Options& options) : options_(options), weight_(options.prior_weight) {
    if (!(options.forgetting > 0 && options.forgetting < 1 && options.quick_forgetting > 0 &&
          options.quick_forgetting < options.forgetting)) {
        throw std::invalid_argument("a speed factor must forget, and its quick mean sooner");
    }
    if (!(options.lowest > 0 && options.lowest <= 1 && options.highest >= 1 && options.prior_weight > 0)) {
        throw std::invalid_argument("the bounds of a speed factor must be positive and hold 1, its prior must weigh");
    }
}

void SpeedFactor::observe(double predicted, double actual) {
    if (!(predicted > 0 && actual > 0 && std::isfinite(predicted) && std::isfinite(actual))) {
        return;
    }
    const double innovation = std::clamp(std::log(actual / predicted) - slow_, -kMaxInnovation, kMaxInnovation);
    const double ratio = slow_ + innovation;
    weight_ = options_.forgetting * weight_ + 1;
    slow_ += innovation / weight_;
    quick_weight_ = options_.quick_forgetting * quick_weight_ + 1;
    quick_ += (ratio - quick_) / quick_weight_;
    variance_ += (1 - options_.forgetting) * (innovation * innovation - variance_);

    // An exponential mean with forgetting f has the variance of (1 + f) / (1 - f) equal observations.
    const double num_quick = (1 + options_.quick_forgetting) / (1 - options_.quick_forgetting);
    const bool is_quick_full = quick_weight_ * (1 - options_.quick_forgetting) > 0.6;
    if (is_quick_full && std::abs(quick_ - slow_) > kMaxDeviations * std::sqrt(variance_ / num_quick)) {
        slow_ = quick_;
        weight_ = quick_weight_;
    }
    slow_ = std::clamp(slow_, std::log(options_.lowest), std::log(options_.highest));
    value_ = std::exp(slow_);
    ++num_observed_;
}

}  // namespace sage::policy
