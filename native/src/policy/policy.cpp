#include "sage/policy/policy.hpp"
