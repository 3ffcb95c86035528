// Python face of the simulator.
#include <pybind11/pybind11.h>
namespace py = pybind11;
void bind_simulator(py::module_&) {}
