#include "distance.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

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

template <std::size_t N>
AVX512 inline void dot_group_i8_avx512(const std::int8_t* q, const std::byte* const* v, std::size_t dim,
                                       std::int32_t* out) {
    __m512i sums[N];
    for (std::size_t i = 0; i < N; ++i) sums[i] = _mm512_setzero_si512();
    std::size_t d = 0;
    for (; d + 64 <= dim; d += 64) {
        const __m512i q0 = _mm512_loadu_si512(q + d);
        for (std::size_t i = 0; i < N; ++i)
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(v[i] + d), q0);
    }
    if (d < dim) {
        const __mmask64 mask = (1ull << (dim - d)) - 1;
        const __m512i q0 = _mm512_maskz_loadu_epi8(mask, q + d);
        for (std::size_t i = 0; i < N; ++i)
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_maskz_loadu_epi8(mask, v[i] + d), q0);
    }
    for (std::size_t i = 0; i < N; ++i) out[i] = _mm512_reduce_add_epi32(sums[i]);
}

AVX512 void dot_i8_avx512(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                          void* out) {
    const auto* q = static_cast<const std::int8_t*>(query);
    auto* result = static_cast<std::int32_t*>(out);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) dot_group_i8_avx512<4>(q, codes + i, dim, result + i);
    for (; i < n; ++i) dot_group_i8_avx512<1>(q, codes + i, dim, result + i);
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

template <typename Load>
AVX2 void dot_float_avx2(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                         void* out) {
    const auto* q = static_cast<const float*>(query);
    for (std::size_t i = 0; i < n; ++i) {
        __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        std::size_t d = 0;
        for (; d + 32 <= dim; d += 32)
            for (std::size_t part = 0; part < 4; ++part)
                sums[part] = _mm256_fmadd_ps(_mm256_loadu_ps(q + d + 8 * part),
                                             Load::load(codes[i], d + 8 * part), sums[part]);
        float total =
            sum_avx2(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
        for (; d < dim; ++d) total += q[d] * Load::one(codes[i], d);
        static_cast<float*>(out)[i] = total;
    }
}

AVX2 void dot_i8_avx2(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                      void* out) {
    const auto* q = static_cast<const std::int8_t*>(query);
    for (std::size_t i = 0; i < n; ++i) {
        const auto* v = reinterpret_cast<const std::uint8_t*>(codes[i]);
        __m256i sums = _mm256_setzero_si256();
        std::size_t d = 0;
        for (; d + 16 <= dim; d += 16) {  // products of 8 bits fit 16 only when widened first
            const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + d)));
            const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v + d)));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
        }
        alignas(32) std::int32_t parts[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sums);
        std::int32_t total = 0;
        for (std::int32_t part : parts) total += part;
        for (; d < dim; ++d) total += static_cast<std::int32_t>(q[d]) * static_cast<std::int32_t>(v[d]);
        static_cast<std::int32_t*>(out)[i] = total;
    }
}
#endif

#ifdef UNIECS_X86
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

std::size_t Codec::bytes() const {
    return storage == Storage::float32 ? 4 * dim : storage == Storage::float16 ? 2 * dim : dim;
}

float Codec::encode(const float* vector, std::byte* codes) const {
    switch (storage) {
        case Storage::float32:
            std::memcpy(codes, vector, 4 * dim);
            return 1;
        case Storage::float16:
            for (std::size_t d = 0; d < dim; ++d)
                reinterpret_cast<std::uint16_t*>(codes)[d] = float_to_half(vector[d]);
            return 1;
        case Storage::int8:
            break;
    }
    float largest = 0;
    for (std::size_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(vector[d]));
    const float scale = largest > 0 ? largest / 127 : 1;
    for (std::size_t d = 0; d < dim; ++d)
        reinterpret_cast<std::uint8_t*>(codes)[d] =
            static_cast<std::uint8_t>(static_cast<int>(std::nearbyint(vector[d] / scale)) + 128);
    return scale;
}

void Codec::decode(const std::byte* codes, float scale, float* vector) const {
    for (std::size_t d = 0; d < dim; ++d)
        vector[d] = storage == Storage::float32 ? reinterpret_cast<const float*>(codes)[d]
                    : storage == Storage::float16
                        ? half_to_float(reinterpret_cast<const std::uint16_t*>(codes)[d])
                        : scale * static_cast<float>(std::to_integer<int>(codes[d]) - 128);
}

void Query::set(const float* vector) {
    if (codec_.storage != Storage::int8) {
        floats_ = vector;
        return;
    }
    set_int8(vector);
}

void Query::set_int8(const float* vector) {
    decoded_.resize(codec_.dim);  // a place for the codes on the way
    scale_ = codec_.encode(vector, reinterpret_cast<std::byte*>(decoded_.data()));
    set_stored(reinterpret_cast<const std::byte*>(decoded_.data()), scale_);
}

void Query::set_stored(const std::byte* codes, float scale) {
    if (codec_.storage == Storage::float32) {
        floats_ = reinterpret_cast<const float*>(codes);
    } else if (codec_.storage == Storage::float16) {
        decoded_.resize(codec_.dim);
        codec_.decode(codes, scale, decoded_.data());
        floats_ = decoded_.data();
    } else {
        signed_.resize(codec_.dim);
        scale_ = scale, sum_ = 0;
        for (std::size_t d = 0; d < codec_.dim; ++d) {
            const int value = std::to_integer<int>(codes[d]) - 128;
            signed_[d] = static_cast<std::int8_t>(value);
            sum_ += value;
        }
    }
}

void Query::score(const std::byte* const* codes, const float* scales, std::size_t n, float* out) const {
    if (codec_.storage == Storage::float32) return kernels().f32(floats_, codes, n, codec_.dim, out);
    if (codec_.storage == Storage::float16) return kernels().f16(floats_, codes, n, codec_.dim, out);
    std::int32_t sums[64];
    for (std::size_t first = 0; first < n; first += 64) {
        const std::size_t some = std::min<std::size_t>(64, n - first);
        kernels().i8(signed_.data(), codes + first, some, codec_.dim, sums);
        for (std::size_t i = 0; i < some; ++i)
            out[first + i] = scale_ * scales[first + i] * static_cast<float>(sums[i] - 128 * sum_);
    }
}

}  // namespace uniecs
