// Samples of one figure, printed as a JSON object of their percentiles.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace bench {

class Distribution {
public:
    void add(double value) { values_.push_back(static_cast<float>(value)); }

    // Append `,"name":{…}`, or `,"name":null` where there are no samples. Sorts them.
    void append_json(std::string& out, const char* name) {
        out += std::string(",\"") + name + "\":";
        if (values_.empty()) {
            out += "null";
            return;
        }
        std::sort(values_.begin(), values_.end());
        double sum = 0;
        for (const float value : values_) {
            sum += static_cast<double>(value);
        }
        char text[256];
        std::snprintf(
            text, sizeof text, "{\"num\":%zu,\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}",
            values_.size(), sum / static_cast<double>(values_.size()), percentile(0.5), percentile(0.9),
            percentile(0.99), static_cast<double>(values_.back()));
        out += text;
    }

private:
    // Nearest rank, of sorted values.
    [[nodiscard]] double percentile(double share) const {
        const auto rank = static_cast<std::size_t>(share * static_cast<double>(values_.size()));
        return static_cast<double>(values_[std::min(values_.size() - 1, rank)]);
    }

    std::vector<float> values_;
};

}  // namespace bench
