// The two passes by each set of instructions; integers modulo 2^32, so all give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "resize_weights.hpp"

namespace uniecs {

constexpr std::size_t ROWS = 8;       // rows that `across` takes at once
constexpr int TAPS = 4;               // weights are laid down by fours
constexpr std::size_t OVERREAD = 16;  // bytes that may be read past the end of a row

// Weights as one set of kernels wants them.
struct PackedWeights {
    std::vector<int> first, groups;  // of each output: first input pixel, groups of TAPS weights
    std::vector<std::int32_t> words;
    std::size_t stride = 0;  // words of one output

    const std::int32_t* of(std::size_t output) const { return words.data() + output * stride; }
};

struct ResizeKernels {
    const char* name;  // "avx512", "avx2" or "portable"
    PackedWeights (*pack)(const Weights& weights);
    // ROWS lines of RGB pixels to as many of the outputs.
    void (*across)(const PackedWeights& weights, const std::uint8_t* const* from, std::uint8_t* const* to);
    // One output line from the input lines from `rows` on.
    void (*down)(const PackedWeights& weights, int output, const std::uint8_t* const* rows,
                 std::size_t row_bytes, std::uint8_t* to);
};

// What this CPU can run, the fastest first.
const std::vector<ResizeKernels>& resize_kernels();

}  // namespace uniecs
