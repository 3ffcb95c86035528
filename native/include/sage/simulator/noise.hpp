// Log-normal noise with mean 1 and the same bits on every host: additions and multiplications only, no libm.
#pragma once

#include <cstdint>

#include "sage/policy/random.hpp"

namespace sage::simulator {

// e to the power of x, |x| <= 700, relative error below 1e-14.
double exponential(double x);

class LogNormal {
public:
    LogNormal(std::uint64_t seed, double sigma) : random_(seed), sigma_(sigma) {}

    double next();

private:
    policy::SplitMix64 random_;
    double sigma_;
};

}  // namespace sage::simulator
