#include "pacing.hpp"

#include <charconv>

namespace bench {

void Pace::read(std::string_view text) {
    while (!text.empty()) {
        const std::size_t end = text.find_first_of("& ");
        const std::string_view pair = text.substr(0, end);
        const std::size_t equals = pair.find('=');
        if (equals != std::string_view::npos) {
            std::uint64_t value = 0;
            const std::string_view digits = pair.substr(equals + 1);
            std::from_chars(digits.data(), digits.data() + digits.size(), value);
            if (pair.substr(0, equals) == "itl_us") {
                itl_us = value;
            } else if (pair.substr(0, equals) == "ttft_us") {
                ttft_us = value;
            }
        }
        if (end == std::string_view::npos) {
            return;
        }
        text.remove_prefix(end + 1);
    }
}

}  // namespace bench
