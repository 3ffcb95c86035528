// The Python module `sage_native._native`. Each part binds itself, in a file of its own.

#include <pybind11/pybind11.h>

void bind_kernels(pybind11::module_& module);
void bind_policy(pybind11::module_& module);
void bind_policy_parts(pybind11::module_& module);
void bind_policy_testing(pybind11::module_& module);
void bind_simulator(pybind11::module_& module);

PYBIND11_MODULE(_native, module) {
    bind_kernels(module);
    bind_policy(module);
    bind_policy_parts(module);
    bind_policy_testing(module);
    bind_simulator(module);
}
