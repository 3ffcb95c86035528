// Python face of the kernels: checks shapes and types, releases the GIL, copies nothing on the way in.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "sage/kernels/maximal_marginal_relevance.hpp"
#include "sage/kernels/rank_fusion.hpp"
#include "sage/kernels/text_splitter.hpp"
#include "sage/kernels/top_k.hpp"

namespace py = pybind11;
namespace kernels = sage::kernels;

namespace {

template <typename T>
void require(const py::array& array, const char* name, py::ssize_t ndim) {
    const py::dtype expected = py::dtype::of<T>();
    if (!array.dtype().equal(expected)) {
        throw py::value_error(
            std::string(name) + " is " + std::string(py::str(array.dtype())) + "; expected " +
            std::string(py::str(expected)));
    }
    if (array.ndim() != ndim) {
        throw py::value_error(
            std::string(name) + " has " + std::to_string(array.ndim()) + " dimensions; expected " +
            std::to_string(ndim));
    }
    if ((array.flags() & py::array::c_style) == 0) {
        throw py::value_error(std::string(name) + " is strided; expected a C-contiguous array");
    }
}

kernels::MatrixView matrix_view(const py::array& array, const char* name) {
    require<float>(array, name, 2);
    return {
        static_cast<const float*>(array.data()), static_cast<std::size_t>(array.shape(0)),
        static_cast<std::size_t>(array.shape(1))};
}

template <typename T>
std::span<const T> vector_view(const py::array& array, const char* name) {
    require<T>(array, name, 1);
    return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.shape(0))};
}

std::size_t count(py::ssize_t value, const char* name, py::ssize_t lowest) {
    if (value < lowest) {
        throw py::value_error(
            std::string(name) + " is " + std::to_string(value) + "; expected at least " + std::to_string(lowest));
    }
    return static_cast<std::size_t>(value);
}

std::pair<py::array_t<std::int64_t>, py::array_t<float>> top_k(
    const py::array& matrix, const py::array& queries, py::ssize_t k, const std::optional<py::array>& mask) {
    const kernels::MatrixView rows = matrix_view(matrix, "matrix");
    const kernels::MatrixView wanted = matrix_view(queries, "queries");
    const std::size_t limit = count(k, "k", 0);
    std::span<const std::uint8_t> allowed;
    if (mask) {
        require<bool>(*mask, "mask", 1);
        allowed = {static_cast<const std::uint8_t*>(mask->data()), static_cast<std::size_t>(mask->shape(0))};
        if (allowed.size() != rows.num_rows) {
            throw py::value_error(
                "mask has " + std::to_string(allowed.size()) + " entries; expected " + std::to_string(rows.num_rows) +
                ", one per row");
        }
    }
    std::vector<kernels::Scored> found;
    {
        const py::gil_scoped_release release;
        found = kernels::top_k(rows, wanted, limit, allowed);
    }
    const auto num_queries = static_cast<py::ssize_t>(wanted.num_rows);
    const py::ssize_t width = num_queries == 0 ? 0 : static_cast<py::ssize_t>(found.size()) / num_queries;
    py::array_t<std::int64_t> indices({num_queries, width});
    py::array_t<float> scores({num_queries, width});
    for (std::size_t i = 0; i < found.size(); ++i) {
        indices.mutable_data()[i] = found[i].index;
        scores.mutable_data()[i] = found[i].score;
    }
    return {std::move(indices), std::move(scores)};
}

py::array_t<std::int64_t> maximal_marginal_relevance(
    const py::array& candidates, const py::array& relevance, py::ssize_t k, double trade_off) {
    const kernels::MatrixView rows = matrix_view(candidates, "candidates");
    const std::span<const float> weights = vector_view<float>(relevance, "relevance");
    const std::size_t limit = count(k, "k", 0);
    std::vector<std::int64_t> chosen;
    {
        const py::gil_scoped_release release;
        chosen = kernels::maximal_marginal_relevance(rows, weights, limit, trade_off);
    }
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(chosen.size()), chosen.data());
}

std::pair<py::array_t<std::int64_t>, py::array_t<double>> reciprocal_rank_fusion(
    const std::vector<py::array>& rankings, py::ssize_t k, double rank_constant,
    const std::optional<std::vector<double>>& weights) {
    std::vector<std::span<const std::int64_t>> views;
    views.reserve(rankings.size());
    for (std::size_t i = 0; i < rankings.size(); ++i) {
        views.push_back(vector_view<std::int64_t>(rankings[i], ("rankings[" + std::to_string(i) + "]").c_str()));
    }
    if (weights && weights->size() != views.size()) {
        throw py::value_error(
            "weights has " + std::to_string(weights->size()) + " entries; expected " + std::to_string(views.size()) +
            ", one per ranking");
    }
    const std::size_t limit = count(k, "k", 0);
    const std::span<const double> given = weights ? std::span<const double>(*weights) : std::span<const double>();
    std::vector<kernels::Fused> fused;
    {
        const py::gil_scoped_release release;
        fused = kernels::reciprocal_rank_fusion(views, rank_constant, given, limit);
    }
    py::array_t<std::int64_t> ids(static_cast<py::ssize_t>(fused.size()));
    py::array_t<double> scores(static_cast<py::ssize_t>(fused.size()));
    for (std::size_t i = 0; i < fused.size(); ++i) {
        ids.mutable_data()[i] = fused[i].id;
        scores.mutable_data()[i] = fused[i].score;
    }
    return {std::move(ids), std::move(scores)};
}

std::vector<std::pair<std::size_t, std::size_t>> split_text(
    const py::str& text, py::ssize_t chunk_chars, py::ssize_t overlap_chars) {
    const std::size_t limit = count(chunk_chars, "chunk_chars", 1);
    const std::size_t overlap = count(overlap_chars, "overlap_chars", 0);
    py::ssize_t size = 0;
    // The buffer belongs to `text`, which the caller holds. A lone surrogate raises UnicodeEncodeError, a ValueError.
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) {
        throw py::error_already_set();
    }
    std::vector<std::pair<std::size_t, std::size_t>> ranges;
    {
        const py::gil_scoped_release release;
        for (const kernels::Passage& passage :
             kernels::split_text({data, static_cast<std::size_t>(size)}, limit, overlap)) {
            ranges.emplace_back(passage.start, passage.end);
        }
    }
    return ranges;
}

}  // namespace

void bind_kernels(py::module_& m) {
    m.doc() = "Native kernels of SAGE; use them through sage_native.";
    m.def("top_k", &top_k, py::arg("matrix"), py::arg("queries"), py::arg("k"), py::arg("mask") = py::none());
    m.def(
        "maximal_marginal_relevance", &maximal_marginal_relevance, py::arg("candidates"), py::arg("relevance"),
        py::arg("k"), py::arg("trade_off") = 0.5);
    m.def(
        "reciprocal_rank_fusion", &reciprocal_rank_fusion, py::arg("rankings"), py::arg("k"),
        py::arg("rank_constant") = 60.0, py::arg("weights") = py::none());
    m.def("split_text", &split_text, py::arg("text"), py::arg("chunk_chars"), py::arg("overlap_chars") = 0);
}
