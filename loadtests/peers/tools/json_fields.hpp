// The few fields that a mock engine needs of a request's JSON, found without parsing the rest.
#pragma once

#include <cstddef>
#include <string_view>

namespace bench {

// Return what follows `"key":` at its first occurrence in `json`, whatever its depth; empty where there is none.
std::string_view find_value(std::string_view json, std::string_view key);
[[nodiscard]] bool is_true(std::string_view json, std::string_view key);
[[nodiscard]] int number_of(std::string_view json, std::string_view key, int otherwise);
// Return how many texts or lists of token ids the value of "input" has.
std::size_t count_inputs(std::string_view json);

}  // namespace bench
