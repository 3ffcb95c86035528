#include "sage/step_cost.hpp"
