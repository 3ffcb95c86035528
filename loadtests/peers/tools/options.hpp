// Command lines of the form `--key value --flag`.
#pragma once

#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>

namespace bench {

// Call `take(key, value)` for each option in order; `value()` consumes the next argument. `take` returns false for an
// option that it does not know, which ends the process with status 2.
template <typename Take>
void read_options(int argc, char** argv, const char* usage, Take take) {
    for (int i = 1; i < argc; ++i) {
        const std::string key = argv[i];
        const auto value = [&]() -> std::string {
            if (i + 1 >= argc) {
                std::cerr << "no value after " << key << '\n' << usage;
                std::exit(2);
            }
            return argv[++i];
        };
        if (!take(key, value)) {
            std::cerr << "unknown option " << key << '\n' << usage;
            std::exit(2);
        }
    }
}

}  // namespace bench
