// How much slower an instance is than its cost model says: one robust factor.
#pragma once

#include <cstdint>

namespace sage::policy {

// Decayed geometric mean of actual / predicted, from request-level times. One outlier moves it little (its log ratio
// is cut), a lasting change moves it fast: a quick mean of the last ~10 ratios runs beside the slow one, and where they
// part by more than noise explains, the slow one restarts from the quick one.
class SpeedFactor {
public:
    struct Options {
        double forgetting = 0.995;
        double quick_forgetting = 0.9;
        double lowest = 0.3;
        double highest = 3;
        double prior_weight = 4;  // observations that the initial factor 1 counts for
    };

    SpeedFactor() : SpeedFactor(Options{}) {}
    explicit SpeedFactor(const Options& options);

    // `predicted` seconds WITHOUT this factor: predictions are seconds old when they are judged, and a factor that was
    // in them would be counted twice. Pairs that are not positive and finite are ignored.
    void observe(double predicted, double actual);
    [[nodiscard]] double value() const { return value_; }
    [[nodiscard]] std::uint64_t num_observed() const { return num_observed_; }

private:
    Options options_;
    double value_ = 1;
    double slow_ = 0;  // log factors
    double quick_ = 0;
    double weight_;  // observations behind slow_
    double quick_weight_ = 0;
    double variance_ = 0.04;  // of log(actual / predicted) around slow_
    std::uint64_t num_observed_ = 0;
};

}  // namespace sage::policy
