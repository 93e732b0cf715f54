// Reading a file of any content: what lies beyond its end is an ImageError, never a read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "uniecs/errors.hpp"

namespace uniecs {

class Bytes {
  public:
    Bytes() = default;
    Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    const std::uint8_t* data() const { return data_; }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    const std::uint8_t* begin() const { return data_; }
    const std::uint8_t* end() const { return data_ + size_; }
    std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
    bool starts_with(std::string_view prefix) const { return text().substr(0, prefix.size()) == prefix; }

    // What there is of `size` bytes from `start` on.
    Bytes part(std::size_t start, std::size_t size = SIZE_MAX) const {
        start = std::min(start, size_);
        return {data_ + start, std::min(size, size_ - start)};
    }

    std::uint8_t operator[](std::size_t at) const { return integer<1>(at, 0); }
    std::uint16_t be16(std::size_t at) const { return static_cast<std::uint16_t>(integer<2>(at, 1)); }
    std::uint16_t le16(std::size_t at) const { return static_cast<std::uint16_t>(integer<2>(at, 0)); }
    std::uint32_t be32(std::size_t at) const { return integer<4>(at, 3); }
    std::uint32_t le32(std::size_t at) const { return integer<4>(at, 0); }

  private:
    // Byte i counts 256^(i ^ turned): `turned` is 0 for little endian, N - 1 for big.
    template <std::size_t N>
    std::uint32_t integer(std::size_t at, std::size_t turned) const {
        if (at > size_ || size_ - at < N) throw ImageError("it ends too early");
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < N; ++i) value |= std::uint32_t{data_[at + i]} << (8 * (i ^ turned));
        return value;
    }

    const std::uint8_t* data_ = nullptr;
    std::size_t size_ = 0;
};

// A place in a file, as Python's file objects have it.
class Cursor {
  public:
    explicit Cursor(Bytes file, std::size_t at = 0) : file_(file), at_(at) {}

    std::size_t tell() const { return at_; }
    void seek(std::size_t at) { at_ = at; }
    // The next `size` bytes, or what is left of them.
    Bytes read(std::size_t size) {
        const Bytes found = file_.part(at_, size);
        at_ += found.size();
        return found;
    }
    // The next `size` bytes; throws ImageError if there are fewer.
    Bytes take(std::size_t size) {
        const Bytes found = read(size);
        if (found.size() < size) throw ImageError("it is truncated");
        return found;
    }

  private:
    Bytes file_;
    std::size_t at_;
};

}  // namespace uniecs
