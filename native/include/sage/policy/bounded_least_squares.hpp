// Weighted least squares of a few coefficients within bounds, over a stream that is slowly forgotten.
#pragma once

#include <array>
#include <cstddef>
#include <span>

namespace sage::policy {

// Minimises SUM forgetting^age * (x . c - y)^2 + prior_weight * |c - prior|^2 with lowest <= c <= highest.
//
// Recursive least squares in information form: it keeps the decayed sums of x x' and x y, which stay bounded, and
// solves at most 5 equations when asked. The covariance form needs a division per update, loses symmetry over millions
// of them and winds up where the inputs do not vary; here the prior, which is not forgotten, holds such directions.
// Inputs should be scaled so that coefficients and inputs are of the order 1. The bounds are met by the active-set
// method of Stark and Parker, "Bounded-variable least squares", Computational Statistics 10 (1995).
class BoundedLeastSquares {
public:
    static constexpr std::size_t kMaxCoefficients = 5;
    using Vector = std::array<double, kMaxCoefficients>;

    struct Options {
        double forgetting = 0.995;
        double prior_weight = 1;
        double lowest = 0.3;
        double highest = 3;
    };

    // All coefficients have the prior 1.
    BoundedLeastSquares(std::size_t num_coefficients, const Options& options);

    // `inputs` has num_coefficients values. Linear in their square.
    void observe(std::span<const double> inputs, double output);
    // The best coefficients, 0 beyond num_coefficients.
    [[nodiscard]] Vector solve() const;

private:
    using Matrix = std::array<Vector, kMaxCoefficients>;
    using Active = std::array<bool, kMaxCoefficients>;

    [[nodiscard]] std::size_t move_towards(const Vector& wanted, const Active& is_free, Vector& best) const;
    [[nodiscard]] std::size_t most_pulled_inside(const Active& is_free, const Vector& best) const;
    [[nodiscard]] Vector gradient(const Vector& at) const;
    [[nodiscard]] Vector solve_free(const Active& is_free, const Vector& at) const;

    std::size_t size_;
    Options options_;
    Matrix squares_{};  // SUM x x'
    Vector products_{};  // SUM x (y - x . 1): relative to the prior, which needs no term of its own then
};

}  // namespace sage::policy
