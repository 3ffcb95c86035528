#include "sage/policy/quantile_factor.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sage::policy {

QuantileFactor::QuantileFactor(const QuantileFactorOptions& options) : options_(options), coverage_(options.q) {
    if (!(options.q > 0 && options.q < 1)) {
        throw std::invalid_argument("q of a quantile factor must be between 0 and 1");
    }
    if (!(options.lowest > 0 && options.lowest <= 1 && options.highest >= 1)) {
        throw std::invalid_argument("the bounds of a quantile factor must be positive and hold 1");
    }
}

void QuantileFactor::observe(double predicted, double actual) {
    if (!(predicted > 0 && actual > 0 && std::isfinite(predicted) && std::isfinite(actual))) {
        return;
    }
    const bool is_covered = actual <= value_ * predicted;
    log_value_ += options_.step * ((is_covered ? 0.0 : 1.0) - (1 - options_.q));
    log_value_ = std::clamp(log_value_, std::log(options_.lowest), std::log(options_.highest));
    value_ = std::exp(log_value_);
    coverage_ += (1 - options_.coverage_decay) * ((is_covered ? 1.0 : 0.0) - coverage_);
    ++num_observed_;
}

}  // namespace sage::policy
