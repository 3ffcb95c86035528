// Python face of the policies.
#include <pybind11/pybind11.h>
#include "sage/policy/policy.hpp"
namespace py = pybind11;
void bind_policy(py::module_& module) {
    py::class_<sage::policy::Policy, py::smart_holder>(module, "Policy");
}
