// The words of a RowSet: atomic, so that searches may read while rows are inserted.
#pragma once

#include <algorithm>
#include <cstdint>
#if defined(_MSC_VER)
#include <intrin.h>
#endif

#include "uniecs/graph.hpp"

namespace uniecs {

#if defined(_MSC_VER)
inline unsigned bits_in(std::uint64_t word) { return static_cast<unsigned>(__popcnt64(word)); }
inline unsigned lowest_bit(std::uint64_t word) {
    unsigned long place;
    _BitScanForward64(&place, word);
    return place;
}
#else
inline unsigned bits_in(std::uint64_t word) { return static_cast<unsigned>(__builtin_popcountll(word)); }
inline unsigned lowest_bit(std::uint64_t word) { return static_cast<unsigned>(__builtin_ctzll(word)); }
#endif

class RowSet::Words {
  public:
    explicit Words(std::size_t size) : words_(size) {}

    std::size_t size() const { return words_.size(); }
    const std::atomic<std::uint64_t>* begin() const { return words_.data(); }
    std::atomic<std::uint64_t>* begin() { return words_.data(); }
    std::uint64_t word(std::size_t i) const { return words_[i].load(std::memory_order_relaxed); }
    void put(std::size_t i, std::uint64_t word) { words_[i].store(word, std::memory_order_relaxed); }
    void set(Row row) { words_[row / 64].fetch_or(std::uint64_t{1} << row % 64, std::memory_order_relaxed); }
    bool contains(Row row) const { return row / 64 < size() && (word(row / 64) >> row % 64 & 1); }
    template <typename Each>
    void for_each(Each each) const {
        for (std::size_t i = 0; i < size(); ++i)
            for (std::uint64_t rest = word(i); rest; rest &= rest - 1) each(Row{64 * i + lowest_bit(rest)});
    }

  private:
    std::vector<std::atomic<std::uint64_t>> words_;
};

}  // namespace uniecs
