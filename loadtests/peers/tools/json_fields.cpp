#include "json_fields.hpp"

#include <cctype>
#include <charconv>

namespace bench {

std::string_view find_value(std::string_view json, std::string_view key) {
    for (std::size_t at = json.find(key); at != json.npos; at = json.find(key, at + key.size())) {
        const std::size_t end = at + key.size();
        if (at > 0 && json[at - 1] == '"' && end < json.size() && json[end] == '"') {
            const std::size_t value = json.find_first_not_of(" :", end + 1);
            return value == json.npos ? std::string_view{} : json.substr(value);
        }
    }
    return {};
}

bool is_true(std::string_view json, std::string_view key) {
    return find_value(json, key).starts_with("true");
}

int number_of(std::string_view json, std::string_view key, int otherwise) {
    const std::string_view value = find_value(json, key);
    int number = otherwise;
    std::from_chars(value.data(), value.data() + value.size(), number);
    return number;
}

std::size_t count_inputs(std::string_view json) {
    const std::string_view value = find_value(json, "input");
    if (!value.starts_with('[')) {
        return 1;
    }
    const std::size_t first = value.find_first_not_of(" \n", 1);
    if (first != value.npos && std::isdigit(static_cast<unsigned char>(value[first])) != 0) {
        return 1;  // one list of token ids
    }
    std::size_t num = 1;
    int depth = 0;
    bool is_text = false;
    for (std::size_t i = 0; i < value.size(); ++i) {
        const char c = value[i];
        if (is_text) {
            i += c == '\\' ? 1 : 0;
            is_text = c != '"';
        } else if (c == '"') {
            is_text = true;
        } else if (c == '[' || c == '{') {
            ++depth;
        } else if (c == ']' || c == '}') {
            if (--depth == 0) {
                break;
            }
        } else if (c == ',' && depth == 1) {
            ++num;
        }
    }
    return num;
}

}  // namespace bench
