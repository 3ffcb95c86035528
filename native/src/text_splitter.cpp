#include "sage/kernels/text_splitter.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

namespace sage::kernels {
namespace {

enum class Level : std::uint8_t { word, sentence, line, paragraph };

// A place where a passage may end (at `end`, before the white space) and another begin (at `start`).
struct Boundary {
    std::size_t end;
    std::size_t start;
    Level level;
};

[[noreturn]] void refuse_utf8(std::size_t offset) {
    throw std::invalid_argument("text is not UTF-8 at byte " + std::to_string(offset));
}

// Strict: no overlong forms, no surrogates, nothing above U+10FFFF (Unicode 15, table 3-7).
std::u32string decode(std::string_view utf8) {
    std::u32string text;
    text.reserve(utf8.size());
    for (std::size_t i = 0; i < utf8.size();) {
        const auto lead = static_cast<unsigned char>(utf8[i]);
        if (lead < 0x80) {
            text.push_back(lead);
            ++i;
            continue;
        }
        std::size_t length = 0;
        char32_t code = 0;
        char32_t lowest = 0;
        if (lead >= 0xC2 && lead <= 0xDF) {
            length = 2, code = lead & 0x1FU, lowest = 0x80;
        } else if (lead >= 0xE0 && lead <= 0xEF) {
            length = 3, code = lead & 0x0FU, lowest = 0x800;
        } else if (lead >= 0xF0 && lead <= 0xF4) {
            length = 4, code = lead & 0x07U, lowest = 0x10000;
        } else {
            refuse_utf8(i);
        }
        if (i + length > utf8.size()) {
            refuse_utf8(i);
        }
        for (std::size_t j = 1; j < length; ++j) {
            const auto next = static_cast<unsigned char>(utf8[i + j]);
            if ((next & 0xC0U) != 0x80U) {
                refuse_utf8(i);
            }
            code = (code << 6U) | (next & 0x3FU);
        }
        if (code < lowest || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
            refuse_utf8(i);
        }
        text.push_back(code);
        i += length;
    }
    return text;
}

// Unicode White_Space.
bool is_space(char32_t c) {
    return c == U' ' || (c >= 0x09 && c <= 0x0D) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_one_of(char32_t c, std::u32string_view set) { return set.find(c) != std::u32string_view::npos; }

bool is_wide_terminator(char32_t c) { return is_one_of(c, U"\u3002\uFF01\uFF1F"); }

bool is_terminator(char32_t c) { return is_one_of(c, U".!?\u2026") || is_wide_terminator(c); }

bool is_closer(char32_t c) { return is_one_of(c, U"\"')]}\u00BB\u2019\u201D\u300D\u300F\uFF09"); }

// Does text[..end) end a sentence, seen from the word that follows? "e.g. this" does not: a full stop before a
// small letter is taken for an abbreviation.
bool ends_sentence(const std::u32string& text, std::size_t end, char32_t next) {
    while (end > 0 && is_closer(text[end - 1])) {
        --end;
    }
    if (end == 0 || !is_terminator(text[end - 1])) {
        return false;
    }
    return text[end - 1] != U'.' || next < U'a' || next > U'z';
}

std::vector<Boundary> find_boundaries(const std::u32string& text) {
    std::vector<Boundary> found;
    for (std::size_t i = 0; i < text.size();) {
        if (is_space(text[i])) {
            const std::size_t end = i;
            std::size_t num_newlines = 0;
            for (; i < text.size() && is_space(text[i]); ++i) {
                num_newlines += text[i] == U'\n' ? 1U : 0U;
            }
            if (end == 0 || i == text.size()) {
                continue;
            }
            const Level level = num_newlines >= 2                      ? Level::paragraph
                                : num_newlines == 1                    ? Level::line
                                : ends_sentence(text, end, text[i]) ? Level::sentence
                                                                       : Level::word;
            found.push_back({end, i, level});
            continue;
        }
        // Scripts that put no space after a sentence.
        const bool is_wide_end = is_wide_terminator(text[i]);
        ++i;
        if (is_wide_end) {
            while (i < text.size() && (is_closer(text[i]) || is_wide_terminator(text[i]))) {
                ++i;
            }
            if (i < text.size() && !is_space(text[i])) {
                found.push_back({i, i, Level::sentence});
            }
        }
    }
    return found;
}

// The best place to end a passage that starts at `start`: highest level, then latest, more than half full.
std::optional<Boundary> find_end(
    const std::vector<Boundary>& boundaries, std::size_t first, std::size_t start, std::size_t chunk_chars) {
    std::optional<Boundary> best;
    for (std::size_t i = first; i < boundaries.size() && boundaries[i].end - start <= chunk_chars; ++i) {
        const Boundary& candidate = boundaries[i];
        if (2 * (candidate.end - start) > chunk_chars && (!best || candidate.level >= best->level)) {
            best = candidate;
        }
    }
    return best;
}

// Where the next passage starts: the first sentence, else the first word, at most `overlap_chars` before `next`,
// the first place after the last passage. Counting from there, white space included, keeps a wide gap from
// producing a passage that says nothing new.
std::optional<std::size_t> find_overlap(
    const std::vector<Boundary>& boundaries, std::size_t first, std::size_t next, std::size_t overlap_chars) {
    std::optional<std::size_t> first_word;
    for (std::size_t i = first; i < boundaries.size() && boundaries[i].start < next; ++i) {
        if (boundaries[i].start + overlap_chars < next) {
            continue;
        }
        if (boundaries[i].level >= Level::sentence) {
            return boundaries[i].start;
        }
        if (!first_word) {
            first_word = boundaries[i].start;
        }
    }
    return first_word;
}

}  // namespace

std::vector<Passage> split_text(std::string_view utf8, std::size_t chunk_chars, std::size_t overlap_chars) {
    if (chunk_chars == 0 || chunk_chars > std::numeric_limits<std::size_t>::max() / 4) {
        throw std::invalid_argument("chunk_chars is " + std::to_string(chunk_chars) + "; expected at least 1");
    }
    if (overlap_chars > chunk_chars / 2) {
        throw std::invalid_argument(
            "overlap_chars is " + std::to_string(overlap_chars) + "; expected at most half of chunk_chars (" +
            std::to_string(chunk_chars / 2) + ")");
    }
    const std::u32string text = decode(utf8);
    std::size_t stop = text.size();
    while (stop > 0 && is_space(text[stop - 1])) {
        --stop;
    }
    std::size_t start = 0;
    while (start < stop && is_space(text[start])) {
        ++start;
    }
    std::vector<Passage> passages;
    const std::vector<Boundary> boundaries = find_boundaries(text);
    std::size_t first = 0;  // boundaries before it start at or before `start`
    while (start < stop) {
        if (stop - start <= chunk_chars) {
            passages.push_back({start, stop});
            break;
        }
        while (first < boundaries.size() && boundaries[first].start <= start) {
            ++first;
        }
        const std::optional<Boundary> end = find_end(boundaries, first, start, chunk_chars);
        if (end) {
            passages.push_back({start, end->end});
            start = find_overlap(boundaries, first, end->start, overlap_chars).value_or(end->start);
            continue;
        }
        std::size_t cut = start + chunk_chars;
        if (is_space(text[cut - 1])) {
            // A gap wider than half a passage: nothing fits behind it.
            while (is_space(text[cut - 1])) {
                --cut;
            }
            passages.push_back({start, cut});
            for (start = cut; is_space(text[start]);) {
                ++start;
            }
            continue;
        }
        passages.push_back({start, cut});
        start = find_overlap(boundaries, first, cut, overlap_chars).value_or(cut - overlap_chars);
    }
    return passages;
}

}  // namespace sage::kernels
