// MessagePack, as far as SAGE's messages use it: https://github.com/msgpack/msgpack/blob/master/spec.md
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace bench {

// Appends values to a string. Integers, lengths and maps take the shortest form.
class PackWriter {
public:
    explicit PackWriter(std::string& out) : out_(&out) {}

    PackWriter& map(std::size_t num) { return sized(num, 0x80, 16, 0xde, 0xdf); }
    PackWriter& array(std::size_t num) { return sized(num, 0x90, 16, 0xdc, 0xdd); }

    PackWriter& text(std::string_view value) {
        if (value.size() < 32) {
            byte(0xa0 | value.size());
        } else if (value.size() < 256) {
            byte(0xd9).big_endian(value.size(), 1);
        } else {
            byte(value.size() < 65536 ? 0xda : 0xdb).big_endian(value.size(), value.size() < 65536 ? 2 : 4);
        }
        *out_ += value;
        return *this;
    }

    PackWriter& binary(std::string_view value) {
        byte(0xc6).big_endian(value.size(), 4);
        *out_ += value;
        return *this;
    }

    PackWriter& integer(std::uint64_t value) {
        if (value < 128) {
            return byte(value);
        }
        if (value < 256) {
            return byte(0xcc).big_endian(value, 1);
        }
        if (value < 65536) {
            return byte(0xcd).big_endian(value, 2);
        }
        return value <= UINT32_MAX ? byte(0xce).big_endian(value, 4) : byte(0xcf).big_endian(value, 8);
    }

    PackWriter& real(double value) { return byte(0xcb).big_endian(std::bit_cast<std::uint64_t>(value), 8); }

private:
    PackWriter& sized(std::size_t num, unsigned fixed, std::size_t fixed_limit, unsigned in_2, unsigned in_4) {
        if (num < fixed_limit) {
            return byte(fixed | num);
        }
        return num < 65536 ? byte(in_2).big_endian(num, 2) : byte(in_4).big_endian(num, 4);
    }

    PackWriter& byte(std::size_t value) {
        *out_ += static_cast<char>(static_cast<std::uint8_t>(value));
        return *this;
    }

    PackWriter& big_endian(std::uint64_t value, int num_bytes) {
        for (int shift = 8 * (num_bytes - 1); shift >= 0; shift -= 8) {
            byte(value >> shift & 0xff);
        }
        return *this;
    }

    std::string* out_;
};

// Reads values from the front of a message. Throws std::runtime_error for what is cut off or of another type.
class PackReader {
public:
    explicit PackReader(std::string_view data) : data_(data) {}

    std::size_t map() { return sized(0x80, 0x8f, 0xde, 0xdf, "map"); }
    std::size_t array() { return sized(0x90, 0x9f, 0xdc, 0xdd, "array"); }

    std::string_view text() {
        const unsigned kind = byte();
        if (kind >= 0xa0 && kind <= 0xbf) {
            return bytes(kind & 31);
        }
        if (kind >= 0xd9 && kind <= 0xdb) {
            return bytes(big_endian(1U << (kind - 0xd9)));
        }
        throw std::runtime_error("expected text");
    }

    std::int64_t integer() {
        const unsigned kind = byte();
        if (kind < 0x80 || kind >= 0xe0) {
            return static_cast<std::int8_t>(kind);
        }
        if (kind >= 0xcc && kind <= 0xcf) {
            return static_cast<std::int64_t>(big_endian(1U << (kind - 0xcc)));
        }
        throw std::runtime_error("expected a non-negative integer");
    }

    // True, and taken, where the next value is nil.
    bool nil() {
        if (data_.empty() || static_cast<std::uint8_t>(data_.front()) != 0xc0) {
            return false;
        }
        data_.remove_prefix(1);
        return true;
    }

    void skip() {
        std::size_t num = 1;
        for (; num > 0; --num) {
            const unsigned kind = byte();
            if (kind >= 0x80 && kind <= 0x8f) {
                num += 2 * (kind & 15U);
            } else if (kind >= 0x90 && kind <= 0x9f) {
                num += kind & 15;
            } else if (kind >= 0xa0 && kind <= 0xbf) {
                bytes(kind & 31);
            } else if (kind >= 0xc4 && kind <= 0xc6) {
                bytes(big_endian(1U << (kind - 0xc4)));
            } else if (kind >= 0xd9 && kind <= 0xdb) {
                bytes(big_endian(1U << (kind - 0xd9)));
            } else if (kind == 0xca || kind == 0xcb) {
                bytes(kind == 0xca ? 4 : 8);
            } else if (kind >= 0xcc && kind <= 0xd3) {
                bytes(1U << ((kind - 0xcc) & 3));
            } else if (kind == 0xdc || kind == 0xdd) {
                num += big_endian(kind == 0xdc ? 2 : 4);
            } else if (kind == 0xde || kind == 0xdf) {
                num += 2 * big_endian(kind == 0xde ? 2 : 4);
            } else if (kind >= 0xd4 && kind <= 0xd8) {
                throw std::runtime_error("extension types are not read");
            }
        }
    }

private:
    std::size_t sized(unsigned first, unsigned last, unsigned in_2, unsigned in_4, const char* what) {
        const unsigned kind = byte();
        if (kind >= first && kind <= last) {
            return kind & 15;
        }
        if (kind == in_2 || kind == in_4) {
            return big_endian(kind == in_2 ? 2 : 4);
        }
        throw std::runtime_error(std::string("expected a ") + what);
    }

    unsigned byte() { return static_cast<std::uint8_t>(bytes(1).front()); }

    std::string_view bytes(std::size_t num) {
        if (data_.size() < num) {
            throw std::runtime_error("the message is cut off");
        }
        const std::string_view taken = data_.substr(0, num);
        data_.remove_prefix(num);
        return taken;
    }

    std::size_t big_endian(unsigned num_bytes) {
        std::size_t value = 0;
        for (const char c : bytes(num_bytes)) {
            value = value << 8 | static_cast<std::uint8_t>(c);
        }
        return value;
    }

    std::string_view data_;
};

}  // namespace bench
