#include "row_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "half.hpp"
#include "x86.hpp"

namespace uniecs {

Matrix::Matrix(const float* weights, std::size_t depth, std::size_t columns)
    : depth_(depth), columns_((columns + PANEL - 1) / PANEL * PANEL), half_(true) {
    const std::size_t size = depth * columns_;
    std::vector<std::uint16_t> halves(size);
    std::vector<float> floats(size);
    std::size_t place = 0;
    for (std::size_t panel = 0; panel < columns_; panel += PANEL)
        for (std::size_t k = 0; k < depth; ++k)
            for (std::size_t column = panel; column < panel + PANEL; ++column, ++place) {
                floats[place] = column < columns ? weights[k * columns + column] : 0;
                half_ = half_ && exact_half(floats[place], halves[place]);
            }
    const std::size_t bytes = size * (half_ ? sizeof(std::uint16_t) : sizeof(float));
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
    std::memcpy(data_.get(), half_ ? static_cast<const void*>(halves.data()) : floats.data(), bytes);
}

Columns Matrix::columns(std::size_t first, std::size_t count) const {
    return {data_.get() + first * depth_ * (half_ ? sizeof(std::uint16_t) : sizeof(float)), half_, depth_,
            count};
}

#ifdef UNIECS_X86
UNIECS_COMPILE_FOR("avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
namespace {
constexpr std::size_t LANES = 16;
constexpr const char* INSTRUCTIONS = "avx512";
inline __m512 half_lanes(const std::uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
}
#include "row_kernels_body.hpp"
}  // namespace
}  // namespace avx512
UNIECS_COMPILE_FOR_ALL

UNIECS_COMPILE_FOR("avx2,fma,f16c")
namespace avx2 {
namespace {
constexpr std::size_t LANES = 8;
constexpr const char* INSTRUCTIONS = "avx2";
inline __m256 half_lanes(const std::uint16_t* from) {
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
}
#include "row_kernels_body.hpp"
}  // namespace
}  // namespace avx2
UNIECS_COMPILE_FOR_ALL
#endif

std::size_t attention_scratch(std::size_t rows, std::size_t others, std::size_t width) {
    return (width + rows) * ((others + PANEL - 1) / PANEL * PANEL);
}

namespace {

std::vector<const RowKernels*> supported() {
    std::vector<const RowKernels*> found;
#ifdef UNIECS_X86
    __builtin_cpu_init();
    if (has_avx512()) found.push_back(&avx512::KERNELS);
    if (has_avx2()) found.push_back(&avx2::KERNELS);
#endif
    return found;
}

}  // namespace

std::vector<std::string> supported_row_kernels() {
    std::vector<std::string> names;
    for (const RowKernels* each : supported()) names.push_back(each->instructions);
    return names;
}

bool has_byte_products() {
#if defined(UNIECS_X86)
    __builtin_cpu_init();
    return has_vnni();
#elif defined(_M_X64)  // not told apart there
    return false;
#else
    return true;
#endif
}

const RowKernels* row_kernels(const std::string& instructions) {
    for (const RowKernels* each : supported())
        if (instructions.empty() || instructions == each->instructions) return each;
    return nullptr;
}

}  // namespace uniecs
