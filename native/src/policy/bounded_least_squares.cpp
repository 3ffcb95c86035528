#include "sage/policy/bounded_least_squares.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sage::policy {

BoundedLeastSquares::BoundedLeastSquares(std::size_t num_coefficients, const Options& options)
    : size_(num_coefficients), options_(options) {
    if (num_coefficients > kMaxCoefficients) {
        throw std::invalid_argument("least squares of more than 5 coefficients");
    }
    if (!(options.forgetting > 0 && options.forgetting <= 1 && options.prior_weight > 0)) {
        throw std::invalid_argument("least squares need forgetting in (0, 1] and a prior of positive weight");
    }
    if (!(options.lowest >= 0 && options.lowest <= 1 && options.highest >= 1)) {
        throw std::invalid_argument("the bounds of least squares must hold the prior 1");
    }
}

void BoundedLeastSquares::observe(std::span<const double> inputs, double output) {
    double error = output;
    for (std::size_t i = 0; i < size_; ++i) {
        error -= inputs[i];
    }
    for (std::size_t i = 0; i < size_; ++i) {
        products_[i] = options_.forgetting * products_[i] + inputs[i] * error;
        for (std::size_t j = 0; j < size_; ++j) {
            squares_[i][j] = options_.forgetting * squares_[i][j] + inputs[i] * inputs[j];
        }
    }
}

BoundedLeastSquares::Vector BoundedLeastSquares::solve() const {
    Vector best{};
    std::fill_n(best.begin(), size_, 1.0);
    Active is_free{};
    std::fill_n(is_free.begin(), size_, true);
    // Each turn fixes or frees one coefficient; 3^5 active sets exist, rounding could repeat one.
    for (std::size_t turn = 0; turn < 64; ++turn) {
        const std::size_t blocking = move_towards(solve_free(is_free, best), is_free, best);
        if (blocking < size_) {
            is_free[blocking] = false;
            continue;
        }
        const std::size_t pulled = most_pulled_inside(is_free, best);
        if (pulled == size_) {
            break;
        }
        is_free[pulled] = true;
    }
    return best;
}

// Go from `best` towards `wanted` as far as the bounds allow. Returns the coefficient that meets its bound first, which
// is put there exactly; size_ where `wanted` was reached.
std::size_t BoundedLeastSquares::move_towards(const Vector& wanted, const Active& is_free, Vector& best) const {
    const auto bound = [&](std::size_t i) { return wanted[i] < options_.lowest ? options_.lowest : options_.highest; };
    double step = 1;
    std::size_t blocking = size_;
    for (std::size_t i = 0; i < size_; ++i) {
        if (!is_free[i] || (wanted[i] >= options_.lowest && wanted[i] <= options_.highest)) {
            continue;
        }
        const double reach = std::max(0.0, (bound(i) - best[i]) / (wanted[i] - best[i]));
        if (blocking == size_ || reach < step) {
            step = reach;
            blocking = i;
        }
    }
    for (std::size_t i = 0; i < size_; ++i) {
        best[i] = std::clamp(best[i] + step * (wanted[i] - best[i]), options_.lowest, options_.highest);
    }
    if (blocking < size_) {
        best[blocking] = bound(blocking);
    }
    return blocking;
}

// Of the coefficients at a bound, the one that would lower the error most by leaving it; size_: none would.
std::size_t BoundedLeastSquares::most_pulled_inside(const Active& is_free, const Vector& best) const {
    const Vector slope = gradient(best);
    double strongest = 1e-10;
    std::size_t pulled = size_;
    for (std::size_t i = 0; i < size_; ++i) {
        const double pull = is_free[i] ? 0.0 : best[i] <= options_.lowest ? -slope[i] : slope[i];
        if (pull > strongest) {
            strongest = pull;
            pulled = i;
        }
    }
    return pulled;
}

// Half the gradient of the objective.
BoundedLeastSquares::Vector BoundedLeastSquares::gradient(const Vector& at) const {
    Vector slope{};
    for (std::size_t i = 0; i < size_; ++i) {
        slope[i] = options_.prior_weight * (at[i] - 1) - products_[i];
        for (std::size_t j = 0; j < size_; ++j) {
            slope[i] += squares_[i][j] * (at[j] - 1);
        }
    }
    return slope;
}

// The minimum over the free coefficients, the others staying as they are: Newton's step, by Cholesky's method on the
// free rows. The prior's weight on the diagonal keeps it positive definite.
BoundedLeastSquares::Vector BoundedLeastSquares::solve_free(const Active& is_free, const Vector& at) const {
    std::array<std::size_t, kMaxCoefficients> rows{};
    std::size_t num_rows = 0;
    for (std::size_t i = 0; i < size_; ++i) {
        if (is_free[i]) {
            rows[num_rows++] = i;
        }
    }
    const Vector slope = gradient(at);
    Matrix lower{};
    Vector change{};
    for (std::size_t i = 0; i < num_rows; ++i) {
        for (std::size_t j = 0; j <= i; ++j) {
            double sum = squares_[rows[i]][rows[j]] + (i == j ? options_.prior_weight : 0.0);
            for (std::size_t k = 0; k < j; ++k) {
                sum -= lower[i][k] * lower[j][k];
            }
            lower[i][j] = i == j ? std::sqrt(sum) : sum / lower[j][j];
        }
        double sum = -slope[rows[i]];
        for (std::size_t k = 0; k < i; ++k) {
            sum -= lower[i][k] * change[k];
        }
        change[i] = sum / lower[i][i];
    }
    Vector found = at;
    for (std::size_t i = num_rows; i-- > 0;) {
        double sum = change[i];
        for (std::size_t k = i + 1; k < num_rows; ++k) {
            sum -= lower[k][i] * change[k];
        }
        change[i] = sum / lower[i][i];
        found[rows[i]] += change[i];
    }
    return found;
}

}  // namespace sage::policy
