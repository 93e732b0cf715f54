#include "distance.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "half.hpp"
#include "x86.hpp"

namespace uniecs {
namespace {

constexpr std::size_t LANES = 16;

// --- portable: enough independent sums for the compiler's vector units

template <typename Stored, typename Convert>
void dot_float_portable(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                        void* out, Convert convert) {
    const auto* q = static_cast<const float*>(query);
    for (std::size_t i = 0; i < n; ++i) {
        const auto* v = reinterpret_cast<const Stored*>(codes[i]);
        float sums[LANES] = {}, rest = 0;
        std::size_t d = 0;
        for (; d + LANES <= dim; d += LANES)
            for (std::size_t lane = 0; lane < LANES; ++lane) sums[lane] += q[d + lane] * convert(v[d + lane]);
        for (; d < dim; ++d) rest += q[d] * convert(v[d]);
        for (std::size_t half = LANES / 2; half; half /= 2)
            for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
        static_cast<float*>(out)[i] = sums[0] + rest;
    }
}

void dot_f32_portable(const void* q, const std::byte* const* codes, std::size_t n, std::size_t dim,
                      void* out) {
    dot_float_portable<float>(q, codes, n, dim, out, [](float v) { return v; });
}

void dot_f16_portable(const void* q, const std::byte* const* codes, std::size_t n, std::size_t dim,
                      void* out) {
    dot_float_portable<std::uint16_t>(q, codes, n, dim, out, half_to_float);
}

// Stored bytes are unsigned (value + 128), the query's are signed: what the CPUs' instructions take.
void dot_i8_portable(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                     void* out) {
    const auto* q = static_cast<const std::int8_t*>(query);
    for (std::size_t i = 0; i < n; ++i) {
        const auto* v = reinterpret_cast<const std::uint8_t*>(codes[i]);
        std::int32_t sum = 0;
        for (std::size_t d = 0; d < dim; ++d)
            sum += static_cast<std::int32_t>(q[d]) * static_cast<std::int32_t>(v[d]);
        static_cast<std::int32_t*>(out)[i] = sum;
    }
}

#ifdef UNIECS_X86
// --- AVX-512 (with VNNI for int8): groups of four vectors share the loads of the query

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

struct F32x16 {
    AVX512 static inline __m512 load(const std::byte* v, std::size_t d) {
        return _mm512_loadu_ps(reinterpret_cast<const float*>(v) + d);
    }
    AVX512 static inline __m512 load(const std::byte* v, std::size_t d, __mmask16 mask) {
        return _mm512_maskz_loadu_ps(mask, reinterpret_cast<const float*>(v) + d);
    }
};

struct F16x16 {
    AVX512 static inline __m512 load(const std::byte* v, std::size_t d) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + 2 * d)));
    }
    AVX512 static inline __m512 load(const std::byte* v, std::size_t d, __mmask16 mask) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, v + 2 * d));
    }
};

// Two sums a vector whatever N is, so that a value does not depend on the group it was computed in.
template <typename Load, std::size_t N>
AVX512 inline void dot_group_avx512(const float* q, const std::byte* const* v, std::size_t dim, float* out) {
    __m512 even[N], odd[N];
    for (std::size_t i = 0; i < N; ++i) even[i] = odd[i] = _mm512_setzero_ps();
    std::size_t d = 0;
    for (; d + 32 <= dim; d += 32) {
        const __m512 q0 = _mm512_loadu_ps(q + d), q1 = _mm512_loadu_ps(q + d + 16);
        for (std::size_t i = 0; i < N; ++i) {
            even[i] = _mm512_fmadd_ps(q0, Load::load(v[i], d), even[i]);
            odd[i] = _mm512_fmadd_ps(q1, Load::load(v[i], d + 16), odd[i]);
        }
    }
    for (; d < dim; d += 16) {
        const auto mask = static_cast<__mmask16>(dim - d >= 16 ? 0xffff : (1u << (dim - d)) - 1);
        const __m512 q0 = _mm512_maskz_loadu_ps(mask, q + d);
        for (std::size_t i = 0; i < N; ++i) even[i] = _mm512_fmadd_ps(q0, Load::load(v[i], d, mask), even[i]);
    }
    for (std::size_t i = 0; i < N; ++i) out[i] = _mm512_reduce_add_ps(_mm512_add_ps(even[i], odd[i]));
}

template <typename Load>
AVX512 void dot_float_avx512(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                             void* out) {
    const auto* q = static_cast<const float*>(query);
    auto* result = static_cast<float*>(out);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) dot_group_avx512<Load, 4>(q, codes + i, dim, result + i);
    if (n - i == 3) dot_group_avx512<Load, 3>(q, codes + i, dim, result + i);
    if (n - i == 2) dot_group_avx512<Load, 2>(q, codes + i, dim, result + i);
    if (n - i == 1) dot_group_avx512<Load, 1>(q, codes + i, dim, result + i);
}

// The sums of four vectors at once, for each of them takes as long.
AVX512 inline __m128i sum_four_avx512(const __m512i* v) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

AVX512 inline __m128i dot_four_i8_avx512(const std::int8_t* q, const std::byte* const* v, std::size_t dim) {
    __m512i sums[4];
    for (__m512i& each : sums) each = _mm512_setzero_si512();
    std::size_t d = 0;
    for (; d + 64 <= dim; d += 64) {
        const __m512i q0 = _mm512_loadu_si512(q + d);
        for (std::size_t i = 0; i < 4; ++i)
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(v[i] + d), q0);
    }
    if (d < dim) {
        const __mmask64 mask = (1ull << (dim - d)) - 1;
        const __m512i q0 = _mm512_maskz_loadu_epi8(mask, q + d);
        for (std::size_t i = 0; i < 4; ++i)
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_maskz_loadu_epi8(mask, v[i] + d), q0);
    }
    return sum_four_avx512(sums);
}

AVX512 void dot_i8_avx512(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                          void* out) {
    const auto* q = static_cast<const std::int8_t*>(query);
    auto* result = static_cast<std::int32_t*>(out);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(result + i), dot_four_i8_avx512(q, codes + i, dim));
    if (i == n) return;
    const std::byte* last[4];  // the last one again where there are fewer
    for (std::size_t j = 0; j < 4; ++j) last[j] = codes[std::min(i + j, n - 1)];
    _mm_mask_storeu_epi32(result + i, static_cast<__mmask8>((1u << (n - i)) - 1),
                          dot_four_i8_avx512(q, last, dim));
}

// --- AVX2 with FMA and F16C (x86-64-v3)

#define AVX2 __attribute__((target("avx2,fma,f16c")))

AVX2 inline float sum_avx2(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

struct F32x8 {
    AVX2 static inline __m256 load(const std::byte* v, std::size_t d) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(v) + d);
    }
    static inline float one(const std::byte* v, std::size_t d) {
        return reinterpret_cast<const float*>(v)[d];
    }
};

struct F16x8 {
    AVX2 static inline __m256 load(const std::byte* v, std::size_t d) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v + 2 * d)));
    }
    static inline float one(const std::byte* v, std::size_t d) {
        return half_to_float(reinterpret_cast<const std::uint16_t*>(v)[d]);
    }
};

// Two sums a vector whatever N is, as above. Four vectors at a time are also read from memory at once.
template <typename Load, std::size_t N>
AVX2 inline void dot_group_avx2(const float* q, const std::byte* const* v, std::size_t dim, float* out) {
    __m256 even[N], odd[N];
    for (std::size_t i = 0; i < N; ++i) even[i] = odd[i] = _mm256_setzero_ps();
    std::size_t d = 0;
    for (; d + 16 <= dim; d += 16) {
        const __m256 q0 = _mm256_loadu_ps(q + d), q1 = _mm256_loadu_ps(q + d + 8);
        for (std::size_t i = 0; i < N; ++i) {
            even[i] = _mm256_fmadd_ps(q0, Load::load(v[i], d), even[i]);
            odd[i] = _mm256_fmadd_ps(q1, Load::load(v[i], d + 8), odd[i]);
        }
    }
    for (std::size_t i = 0; i < N; ++i) {
        out[i] = sum_avx2(_mm256_add_ps(even[i], odd[i]));
        for (std::size_t rest = d; rest < dim; ++rest) out[i] += q[rest] * Load::one(v[i], rest);
    }
}

template <typename Load>
AVX2 void dot_float_avx2(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                         void* out) {
    const auto* q = static_cast<const float*>(query);
    auto* result = static_cast<float*>(out);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) dot_group_avx2<Load, 4>(q, codes + i, dim, result + i);
    for (; i < n; ++i) dot_group_avx2<Load, 1>(q, codes + i, dim, result + i);
}

AVX2 inline std::int32_t sum_avx2(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0b01'00'11'10));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0b10'11'00'01)));
}

// Products of 8 bits fit 16 only when widened first; the vectors of a group share the widened query.
template <std::size_t N>
AVX2 inline void dot_group_i8_avx2(const std::int8_t* q, const std::byte* const* v, std::size_t dim,
                                   std::int32_t* out) {
    const auto at = [](const void* bytes) { return _mm_loadu_si128(static_cast<const __m128i*>(bytes)); };
    __m256i sums[N];
    for (__m256i& each : sums) each = _mm256_setzero_si256();
    std::size_t d = 0;
    for (; d + 16 <= dim; d += 16) {
        const __m256i q0 = _mm256_cvtepi8_epi16(at(q + d));
        for (std::size_t i = 0; i < N; ++i)
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(q0, _mm256_cvtepu8_epi16(at(v[i] + d))));
    }
    for (std::size_t i = 0; i < N; ++i) {
        out[i] = sum_avx2(sums[i]);
        for (std::size_t rest = d; rest < dim; ++rest)
            out[i] += std::int32_t{q[rest]} * std::to_integer<std::int32_t>(v[i][rest]);
    }
}

AVX2 void dot_i8_avx2(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                      void* out) {
    const auto* q = static_cast<const std::int8_t*>(query);
    auto* result = static_cast<std::int32_t*>(out);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) dot_group_i8_avx2<4>(q, codes + i, dim, result + i);
    for (; i < n; ++i) dot_group_i8_avx2<1>(q, codes + i, dim, result + i);
}
#endif

const Kernels& kernels() {
    static const Kernels fastest = supported_kernels().front();
    return fastest;
}

}  // namespace

std::vector<Kernels> supported_kernels() {
    std::vector<Kernels> found;
#ifdef UNIECS_X86
    __builtin_cpu_init();
    if (has_avx512() && __builtin_cpu_supports("avx512vnni"))
        found.push_back({"avx512", dot_float_avx512<F32x16>, dot_float_avx512<F16x16>, dot_i8_avx512});
    if (has_avx2()) found.push_back({"avx2", dot_float_avx2<F32x8>, dot_float_avx2<F16x8>, dot_i8_avx2});
#endif
    found.push_back({"portable", dot_f32_portable, dot_f16_portable, dot_i8_portable});
    return found;
}

std::string instructions() { return kernels().name; }

namespace {

constexpr float ROUNDS = 0x1.8p23f;  // a float32 of this size has no bits left for fractions

// What the vector differs from the centre, in multiples of the factor that is returned.
float encode_int8(const float* vector, const float* centre, std::size_t dim, std::byte* codes) {
    const auto at = [&](std::size_t d) { return vector[d] - centre[d]; };
    float largest[LANES] = {}, most = 0;
    std::size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        for (std::size_t lane = 0; lane < LANES; ++lane) {
            const float size = std::fabs(at(d + lane));
            largest[lane] = size > largest[lane] ? size : largest[lane];
        }
    for (; d < dim; ++d) most = std::max(most, std::fabs(at(d)));
    for (float each : largest) most = std::max(most, each);
    const float factor = most / 127 >= std::numeric_limits<float>::min() ? most / 127 : 1,
                levels = 1 / factor;
    std::int32_t zero;
    std::memcpy(&zero, &ROUNDS, 4);
    for (d = 0; d < dim; ++d) {
        const float shifted = at(d) * levels + ROUNDS;  // to the nearest integer, in the lowest bits
        std::int32_t bits;
        std::memcpy(&bits, &shifted, 4);
        reinterpret_cast<std::uint8_t*>(codes)[d] =
            static_cast<std::uint8_t>(std::min(127, std::max(-127, bits - zero)) + 128);
    }
    return factor;
}

// c.v - c.c / 2, in as many sums as the compiler likes.
float offset_of(const float* centre, const float* vector, std::size_t dim) {
    float sums[LANES] = {}, rest = 0;
    std::size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        for (std::size_t lane = 0; lane < LANES; ++lane)
            sums[lane] += centre[d + lane] * (vector[d + lane] - centre[d + lane] / 2);
    for (; d < dim; ++d) rest += centre[d] * (vector[d] - centre[d] / 2);
    return std::accumulate(sums, sums + LANES, rest);
}

// The length of a vector that is given by its components.
template <typename At>
float length_of(std::size_t dim, At at) {
    float sums[LANES] = {}, rest = 0;
    std::size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        for (std::size_t lane = 0; lane < LANES; ++lane) sums[lane] += at(d + lane) * at(d + lane);
    for (; d < dim; ++d) rest += at(d) * at(d);
    return std::sqrt(std::accumulate(sums, sums + LANES, rest));
}

float value_of(std::byte code) { return static_cast<float>(std::to_integer<int>(code) - 128); }

}  // namespace

std::size_t Codec::bytes() const {
    return storage == Storage::float32 ? 4 * dim : storage == Storage::float16 ? 2 * dim : dim;
}

Scale Codec::encode(const float* vector, std::byte* codes) const {
    switch (storage) {
        case Storage::float32:
            std::memcpy(codes, vector, 4 * dim);
            return {};
        case Storage::float16:
            for (std::size_t d = 0; d < dim; ++d)
                reinterpret_cast<std::uint16_t*>(codes)[d] = float_to_half(vector[d] - centre[d]);
            return {};
        case Storage::int8:
            break;
    }
    return {encode_int8(vector, centre, dim, codes), offset_of(centre, vector, dim)};
}

void Codec::decode(const std::byte* codes, Scale scale, float* vector) const {
    if (storage == Storage::float32) {
        std::memcpy(vector, codes, 4 * dim);
        return;
    }
    for (std::size_t d = 0; d < dim; ++d)
        vector[d] = centre[d] + (storage == Storage::float16
                                     ? half_to_float(reinterpret_cast<const std::uint16_t*>(codes)[d])
                                     : scale.factor * value_of(codes[d]));
}

Reach Codec::reach(const float* vector, const std::byte* codes, Scale scale) const {
    const auto component = [&](std::size_t d) { return vector[d] - centre[d]; };
    return {length_of(dim, component),
            length_of(dim, [&](std::size_t d) { return scale.factor * value_of(codes[d]) - component(d); })};
}

void Query::set(const float* vector) {
    if (codec_.storage != Storage::int8) return set_floats(vector);
    decoded_.resize(codec_.dim);  // a place for the codes on the way
    const Scale scale = codec_.encode(vector, reinterpret_cast<std::byte*>(decoded_.data()));
    set_stored(reinterpret_cast<const std::byte*>(decoded_.data()), scale);
}

void Query::set_floats(const float* vector) {
    floats_ = vector;
    const auto* centre = reinterpret_cast<const std::byte*>(codec_.centre);
    if (codec_.storage == Storage::float16) kernels().f32(vector, &centre, 1, codec_.dim, &base_);
}

void Query::set_stored(const std::byte* codes, Scale scale) {
    if (codec_.storage == Storage::float32) {
        set_floats(reinterpret_cast<const float*>(codes));
    } else if (codec_.storage == Storage::float16) {
        decoded_.resize(codec_.dim);
        codec_.decode(codes, scale, decoded_.data());
        set_floats(decoded_.data());
    } else {
        const std::size_t dim = codec_.dim;
        signed_.resize(dim);
        std::int8_t* values = signed_.data();
        std::int32_t sum = 0;  // local ones, as bytes may alias any member: else this is not vectorised
        for (std::size_t d = 0; d < dim; ++d) {
            const int value = std::to_integer<int>(codes[d]) - 128;
            values[d] = static_cast<std::int8_t>(value);
            sum += value;
        }
        scale_ = scale, sum_ = sum;
    }
}

// With d and w what a vector and the query differ from the centre, d' and w' what their codes stand for:
// d'.w' - d.w = (d' - d).w' + d.(w' - w), and what float32 rounds off.
float Query::error(const float* vector, Reach stored) const {
    const std::size_t dim = codec_.dim;
    const auto coded = [&](std::size_t d) { return scale_.factor * static_cast<float>(signed_[d]); };
    const float length = length_of(dim, coded),
                centre = length_of(dim, [&](std::size_t d) { return codec_.centre[d]; });
    const float own =
        length_of(dim, [&](std::size_t d) { return coded(d) - (vector[d] - codec_.centre[d]); });
    const float rounded = std::numeric_limits<float>::epsilon() * static_cast<float>(dim / LANES + 8);
    return stored.error * length + stored.length * own +
           rounded * (stored.length + stored.error + centre) * (length + own + centre);
}

void Query::score(const std::byte* const* codes, const Scale* scales, std::size_t n, float* out) const {
    if (codec_.storage == Storage::float32) return kernels().f32(floats_, codes, n, codec_.dim, out);
    if (codec_.storage == Storage::float16) {
        kernels().f16(floats_, codes, n, codec_.dim, out);
        for (std::size_t i = 0; i < n; ++i) out[i] += base_;
        return;
    }
    std::int32_t sums[64];
    for (std::size_t first = 0; first < n; first += 64) {
        const std::size_t some = std::min<std::size_t>(64, n - first);
        kernels().i8(signed_.data(), codes + first, some, codec_.dim, sums);
        for (std::size_t i = 0; i < some; ++i)
            out[first + i] =
                scale_.factor * scales[first + i].factor * static_cast<float>(sums[i] - 128 * sum_) +
                (scale_.offset + scales[first + i].offset);
    }
}

}  // namespace uniecs
