// A factor on a prediction such that a wanted share of the actual values stays below it.
#pragma once

#include <cmath>
#include <cstdint>

namespace sage::policy {

struct QuantileFactorOptions {
    double q = 0.9;       // wanted share of actual <= factor * predicted
    double step = 0.02;   // in log units; larger follows faster and wavers more
    double lowest = 0.5;
    double highest = 3;
    double coverage_decay = 0.99;  // per observation, of the exported share only
};

// Quantile tracking: log k += step * (1[actual > k * predicted] - (1 - q)), at rest where P(actual > k * predicted) is
// 1 - q, whatever the distribution of the error (Gibbs and Candes, "Adaptive conformal inference", NeurIPS 2021).
class QuantileFactor {
public:
    QuantileFactor() : QuantileFactor(QuantileFactorOptions{}) {}
    // Throws std::invalid_argument where an option is out of its range.
    explicit QuantileFactor(const QuantileFactorOptions& options);

    // `predicted` WITHOUT this factor. Pairs that are not positive and finite are ignored.
    void observe(double predicted, double actual);
    [[nodiscard]] double value() const { return value_; }
    // Decayed share of actual <= k * predicted with the k of its time; q before the first observation.
    [[nodiscard]] double coverage() const { return coverage_; }
    [[nodiscard]] std::uint64_t num_observed() const { return num_observed_; }

private:
    QuantileFactorOptions options_;
    double log_value_ = 0;
    double value_ = 1;
    double coverage_;
    std::uint64_t num_observed_ = 0;
};

}  // namespace sage::policy
