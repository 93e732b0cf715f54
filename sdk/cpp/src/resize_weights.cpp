#include "resize_weights.hpp"

#include <algorithm>
#include <cmath>

// A fused multiply-add rounds once where Pillow and NumPy round twice.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

namespace uniecs {
namespace {

// Keys' cubic convolution with a = -1/2.
double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

// Half away from zero.
std::int32_t fixed_point(double weight) {
    return static_cast<std::int32_t>(weight * (1 << WEIGHT_BITS) + (weight < 0 ? -0.5 : 0.5));
}

}  // namespace

Weights bicubic_weights(int in, double length, int out, int begin, int end) {
    // Pillow keeps the length in single precision.
    const double step = static_cast<double>(static_cast<float>(length)) / out;
    const double stretch = std::max(step, 1.0), support = 2 * stretch, shrink = 1 / stretch;
    Weights made;
    made.taps = std::min(static_cast<int>(std::ceil(support)) * 2 + 1, in);
    made.values.assign(static_cast<std::size_t>(end - begin) * made.taps, 0);
    std::vector<double> line(static_cast<std::size_t>(made.taps));
    for (int i = begin; i < end; ++i) {
        const double centre = (i + 0.5) * step;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int count = std::min(in, static_cast<int>(centre + support + 0.5)) - first;
        double sum = 0;
        for (int x = 0; x < count; ++x) sum += line[x] = bicubic((x + first - centre + 0.5) * shrink);
        for (int x = 0; x < count; ++x)
            made.values[static_cast<std::size_t>(i - begin) * made.taps + x] =
                fixed_point(sum != 0 ? line[x] / sum : line[x]);
        made.first.push_back(first);
        made.count.push_back(count);
    }
    return made;
}

NormalizeTable normalize_table(const ImagePreprocessing& preprocessing) {
    NormalizeTable table;
    for (std::size_t channel = 0; channel < 3; ++channel) {
        const auto scale = static_cast<float>(1.0 / (255.0 * preprocessing.std[channel]));
        const auto shift = static_cast<float>(preprocessing.mean[channel] / preprocessing.std[channel]);
        for (std::size_t value = 0; value < 256; ++value)
            table[channel][value] = static_cast<float>(value) * scale - shift;
    }
    return table;
}

}  // namespace uniecs
