// The step cost of one instance, learned while it works.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "sage/policy/bounded_least_squares.hpp"
#include "sage/policy/speed_factor.hpp"
#include "sage/step_cost.hpp"

namespace sage::policy {

enum class Regime : std::uint8_t { decode, mixed };  // batches of batch executors are `mixed`

struct OnlineCostOptions {
    double forgetting = 0.995;  // per observation
    double lowest = 0.3;        // coefficients stay within [lowest, highest] * prior
    double highest = 3;
    double prior_weight = 1;    // observations that the prior counts for, never forgotten
};

// Two ways to learn, by what can be seen. Step times: all coefficients of a regime by bounded least squares of the
// RELATIVE error (steps differ tenfold, their noise is multiplicative). Request times only: one factor per regime on
// the prior. Where a regime has seen steps, its factor is not used.
//
// A coefficient that is 0 in a known prior stays 0. A regime whose coefficients are all 0 is unknown: it stays 0 until
// its first step, and is then learned with no bound but 0. The prior's host overhead is part of a0 and m0 in cost().
class OnlineCost {
public:
    explicit OnlineCost(const StepCost& prior, const OnlineCostOptions& options = {});

    // One step took `seconds`; arguments as in StepCost. Times that are not positive and finite are ignored.
    void observe_decode(double decoding, double resident, double seconds);
    void observe_mixed(double prefill, double decoding, double resident, double work, double seconds);
    // One batch of a batch executor. An instance runs batches or steps, not both: they share m0, m1 and m4.
    void observe_batch(double tokens, double items, double seconds);
    // A request-level time that is proportional to step times of this regime: TTFT after dispatch (mixed), TPOT
    // (decode), batch time (mixed). `predicted` by prior(), or by cost() divided by the scale() of that moment.
    void observe_scale(Regime regime, double predicted, double actual);

    // What is believed now. The reference stays valid and changes with observations.
    [[nodiscard]] const StepCost& cost() const;
    [[nodiscard]] const StepCost& prior() const { return prior_; }
    [[nodiscard]] double scale(Regime regime) const { return part(regime).factor.value(); }
    [[nodiscard]] std::uint64_t num_observed(Regime regime) const;  // of either kind

private:
    using Vector = BoundedLeastSquares::Vector;

    struct Part {
        Part(std::span<const double> prior, const OnlineCostOptions& options);

        bool is_known;
        std::array<std::uint8_t, BoundedLeastSquares::kMaxCoefficients> columns{};  // least squares -> coefficient
        std::size_t num_columns = 0;
        Vector unit{};  // seconds per unit of a coefficient of the least squares: the prior, else a nominal value
        BoundedLeastSquares squares;
        SpeedFactor factor;
        std::uint64_t num_steps = 0;
    };

    [[nodiscard]] const Part& part(Regime regime) const { return regime == Regime::decode ? decode_ : mixed_; }
    void observe(Part& part, const Vector& inputs, double seconds);
    [[nodiscard]] static Vector coefficients(const Part& part, const Vector& prior);

    StepCost prior_;
    Part decode_;
    Part mixed_;
    mutable StepCost cost_;
    mutable bool is_stale_ = false;
};

}  // namespace sage::policy
