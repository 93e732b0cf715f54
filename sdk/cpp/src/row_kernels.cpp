#include "row_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "x86.hpp"

namespace uniecs {

Matrix::Matrix(const float* weights, std::size_t depth, std::size_t columns)
    : depth_(depth), columns_((columns + PANEL - 1) / PANEL * PANEL) {
    const std::size_t size = depth * columns_;
    std::vector<float> floats(size);
    float* to = floats.data();
    for (std::size_t panel = 0; panel < columns; panel += PANEL)
        for (std::size_t k = 0; k < depth; ++k, to += PANEL)
            std::copy_n(weights + k * columns + panel, std::min(PANEL, columns - panel), to);
    const RowKernels* kernels = row_kernels();
    data_ = room(size * sizeof(std::uint16_t));
    half_ = kernels && kernels->halve(floats.data(), size, reinterpret_cast<std::uint16_t*>(data_.get()));
    if (half_) return;
    data_ = room(size * sizeof(float));
    std::memcpy(data_.get(), floats.data(), size * sizeof(float));
}

Matrix::Room Matrix::room(std::size_t bytes) {
    return Room(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
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
inline void narrow_lanes(const float* from, std::uint16_t* to) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to),
                       _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
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
inline void narrow_lanes(const float* from, std::uint16_t* to) {
    _mm_store_si128(reinterpret_cast<__m128i*>(to),
                    _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
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
