// The numbers of the two passes and of the normalisation, in the order of operations that Pillow and NumPy
// follow.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "resize.hpp"

namespace uniecs {

constexpr int WEIGHT_BITS = 22;

// For each output pixel the input pixels from `first` on, `count` of them, and their weights times 2^22.
struct Weights {
    int taps = 0;  // places for weights of each output
    std::vector<int> first, count;
    std::vector<std::int32_t> values;  // outputs x taps; zeros beyond `count`

    int outputs() const { return static_cast<int>(first.size()); }
};

// Of a line of `in` pixels, whose first `length` (a fraction where a reduced side was rounded up) become
// `out`: for the outputs from `begin` to before `end`.
Weights bicubic_weights(int in, double length, int out, int begin, int end);

// The value of each channel for each byte.
using NormalizeTable = std::array<std::array<float, 256>, 3>;
NormalizeTable normalize_table(const ImagePreprocessing& preprocessing);

}  // namespace uniecs
