#include "resize_kernels.hpp"

#include <algorithm>
#include <cstring>

#include "x86.hpp"

namespace uniecs {
namespace {

constexpr std::int32_t HALF = 1 << (WEIGHT_BITS - 1);

// `split` writes the words of a group of four weights.
template <std::size_t WORDS, typename Split>
PackedWeights packed(const Weights& weights, Split split) {
    PackedWeights made;
    made.first = weights.first;
    made.stride = static_cast<std::size_t>((weights.taps + TAPS - 1) / TAPS) * WORDS;
    made.words.assign(made.stride * weights.first.size(), 0);
    for (std::size_t i = 0; i < weights.first.size(); ++i) {
        const int groups = (weights.count[i] + TAPS - 1) / TAPS;
        made.groups.push_back(groups);
        for (int group = 0; group < groups; ++group) {
            std::int32_t four[TAPS] = {};
            for (int tap = 0; tap < TAPS && group * TAPS + tap < weights.count[i]; ++tap)
                four[tap] = weights.values[i * weights.taps + group * TAPS + tap];
            split(four, &made.words[i * made.stride + group * WORDS]);
        }
    }
    return made;
}

// --- portable

PackedWeights pack_portable(const Weights& weights) {
    return packed<4>(weights,
                     [](const std::int32_t* four, std::int32_t* words) { std::copy_n(four, 4, words); });
}

std::uint8_t rounded(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> WEIGHT_BITS, 0, 255));
}

void across_portable(const PackedWeights& weights, const std::uint8_t* const* from, std::uint8_t* const* to) {
    for (std::size_t row = 0; row < ROWS; ++row)
        for (std::size_t i = 0; i < weights.first.size(); ++i) {
            const std::int32_t* words = weights.of(i);
            const std::uint8_t* in = from[row] + 3 * static_cast<std::size_t>(weights.first[i]);
            std::int32_t red = HALF, green = HALF, blue = HALF;
            for (int tap = 0; tap < TAPS * weights.groups[i]; ++tap, in += 3) {
                red += words[tap] * in[0];
                green += words[tap] * in[1];
                blue += words[tap] * in[2];
            }
            to[row][3 * i] = rounded(red);
            to[row][3 * i + 1] = rounded(green);
            to[row][3 * i + 2] = rounded(blue);
        }
}

void down_portable(const PackedWeights& weights, int output, const std::uint8_t* const* rows,
                   std::size_t row_bytes, std::uint8_t* to) {
    constexpr std::size_t SOME = 256;
    std::int32_t sums[SOME];
    const std::int32_t* words = weights.of(static_cast<std::size_t>(output));
    for (std::size_t start = 0; start < row_bytes; start += SOME) {
        const std::size_t n = std::min(SOME, row_bytes - start);
        std::fill_n(sums, n, HALF);
        for (int tap = 0; tap < TAPS * weights.groups[output]; ++tap)
            for (std::size_t x = 0; x < n; ++x) sums[x] += words[tap] * rows[tap][start + x];
        for (std::size_t x = 0; x < n; ++x) to[start + x] = rounded(sums[x]);
    }
}

#ifdef UNIECS_X86
// Four bytes of `pixels` to each row's place, three at the end of a line: the byte behind it belongs to
// another.
template <std::size_t N>
inline void store_pixels(const std::uint32_t* pixels, std::size_t output, bool last,
                         std::uint8_t* const* to) {
    for (std::size_t row = 0; row < N; ++row) std::memcpy(to[row] + 3 * output, &pixels[row], last ? 3 : 4);
}

// --- AVX2: 16-bit products. A weight w is hi * 2^12 + lo with 0 <= lo < 2^12; each word holds two of them.

#define AVX2 __attribute__((target("avx2")))

std::int32_t pair(std::int32_t a, std::int32_t b) {
    return static_cast<std::int32_t>((static_cast<std::uint32_t>(b) << 16) |
                                     (static_cast<std::uint32_t>(a) & 0xffff));
}

PackedWeights pack_avx2(const Weights& weights) {
    return packed<4>(weights, [](const std::int32_t* four, std::int32_t* words) {
        for (int i = 0; i < 2; ++i) {
            const std::int32_t a = four[2 * i], b = four[2 * i + 1];
            words[2 * i] = pair(a >> 12, b >> 12);
            words[2 * i + 1] = pair(a & 0xfff, b & 0xfff);
        }
    });
}

AVX2 inline __m256i two_rows(const std::uint8_t* a, const std::uint8_t* b) {
    const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
    return _mm256_inserti128_si256(low, _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1);
}

struct Sums256 {
    __m256i high, low;

    AVX2 void start() { high = low = _mm256_setzero_si256(); }
    AVX2 void add(__m256i pixels, __m256i high_weights, __m256i low_weights) {
        high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, high_weights));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, low_weights));
    }
    AVX2 __m256i shifted() const {
        const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, 12), low);
        return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)), WEIGHT_BITS);
    }
};

// Each 128-bit lane is a row: R, G, B and nothing, each of two pixels side by side.
AVX2 void across_four_avx2(const PackedWeights& weights, const std::uint8_t* const* from,
                           std::uint8_t* const* to) {
    const __m256i first_two = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                               0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m256i next_two = _mm256_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,  //
                                              6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const std::size_t outputs = weights.first.size();
    for (std::size_t i = 0; i < outputs; ++i) {
        const std::int32_t* words = weights.of(i);
        std::size_t at = 3 * static_cast<std::size_t>(weights.first[i]);
        Sums256 a, b;
        a.start(), b.start();
        for (int group = weights.groups[i]; group; --group, words += 4, at += 12) {
            const __m256i upper = two_rows(from[0] + at, from[1] + at);
            const __m256i lower = two_rows(from[2] + at, from[3] + at);
            const __m256i high = _mm256_set1_epi32(words[0]), low = _mm256_set1_epi32(words[1]);
            a.add(_mm256_shuffle_epi8(upper, first_two), high, low);
            b.add(_mm256_shuffle_epi8(lower, first_two), high, low);
            const __m256i high2 = _mm256_set1_epi32(words[2]), low2 = _mm256_set1_epi32(words[3]);
            a.add(_mm256_shuffle_epi8(upper, next_two), high2, low2);
            b.add(_mm256_shuffle_epi8(lower, next_two), high2, low2);
        }
        const __m256i both = _mm256_packs_epi32(a.shifted(), b.shifted());  // rows 0, 2 | 1, 3
        alignas(32) std::uint32_t pixels[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(pixels), _mm256_packus_epi16(both, both));
        const std::uint32_t ordered[4] = {pixels[0], pixels[4], pixels[1], pixels[5]};
        store_pixels<4>(ordered, i, i + 1 == outputs, to);
    }
}

AVX2 void across_avx2(const PackedWeights& weights, const std::uint8_t* const* from,
                      std::uint8_t* const* to) {
    across_four_avx2(weights, from, to);
    across_four_avx2(weights, from + 4, to + 4);
}

// `down` for lines shorter than a block.
void down_narrow(const PackedWeights& weights, int output, const std::uint8_t* const* rows,
                 std::size_t row_bytes, std::uint8_t* to) {
    for (std::size_t x = 0; x < row_bytes; ++x) {
        const std::int32_t* words = weights.of(static_cast<std::size_t>(output));
        std::int32_t sum = HALF;
        for (int tap = 0; tap < TAPS * weights.groups[output]; ++tap) {
            const int shift = tap % 2 ? 16 : 0;
            const auto high = static_cast<std::int16_t>(words[tap / 2 * 2] >> shift);
            const auto low = static_cast<std::int16_t>(words[tap / 2 * 2 + 1] >> shift);
            sum += (high * 4096 + low) * rows[tap][x];
        }
        to[x] = rounded(sum);
    }
}

AVX2 inline __m256i load256(const std::uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

AVX2 void down_avx2(const PackedWeights& weights, int output, const std::uint8_t* const* rows,
                    std::size_t row_bytes, std::uint8_t* to) {
    constexpr std::size_t BLOCK = 32;
    if (row_bytes < BLOCK) return down_narrow(weights, output, rows, row_bytes, to);
    const __m256i zero = _mm256_setzero_si256();
    for (std::size_t start = 0; start < row_bytes; start += BLOCK) {
        const std::size_t x = std::min(start, row_bytes - BLOCK);  // the last block overlaps the one before
        const std::int32_t* words = weights.of(static_cast<std::size_t>(output));
        const std::uint8_t* const* row = rows;
        Sums256 sums[4];
        for (Sums256& each : sums) each.start();
        for (int pairs = 2 * weights.groups[output]; pairs; --pairs, words += 2, row += 2) {
            const __m256i high = _mm256_set1_epi32(words[0]), low = _mm256_set1_epi32(words[1]);
            const __m256i a = load256(row[0] + x), b = load256(row[1] + x);
            const __m256i left = _mm256_unpacklo_epi8(a, b), right = _mm256_unpackhi_epi8(a, b);
            sums[0].add(_mm256_unpacklo_epi8(left, zero), high, low);
            sums[1].add(_mm256_unpackhi_epi8(left, zero), high, low);
            sums[2].add(_mm256_unpacklo_epi8(right, zero), high, low);
            sums[3].add(_mm256_unpackhi_epi8(right, zero), high, low);
        }
        const __m256i left = _mm256_packs_epi32(sums[0].shifted(), sums[1].shifted());
        const __m256i right = _mm256_packs_epi32(sums[2].shifted(), sums[3].shifted());
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + x), _mm256_packus_epi16(left, right));
    }
}

#undef AVX2

// --- AVX-512 with VNNI: products of bytes. A weight is three signed bytes; each word holds one byte of four.

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

PackedWeights pack_avx512(const Weights& weights) {
    return packed<3>(weights, [](const std::int32_t* four, std::int32_t* words) {
        std::int8_t bytes[3][TAPS];
        for (int tap = 0; tap < TAPS; ++tap) {
            std::int32_t rest = four[tap];
            for (auto& each : bytes) {
                each[tap] = static_cast<std::int8_t>(rest);
                rest = (rest - each[tap]) >> 8;
            }
        }
        std::memcpy(words, bytes, sizeof bytes);
    });
}

struct Sums512 {
    __m512i low, middle, high;

    AVX512 void start() { low = middle = high = _mm512_setzero_si512(); }
    AVX512 void add(__m512i pixels, const std::int32_t* words) {
        low = _mm512_dpbusd_epi32(low, pixels, _mm512_set1_epi32(words[0]));
        middle = _mm512_dpbusd_epi32(middle, pixels, _mm512_set1_epi32(words[1]));
        high = _mm512_dpbusd_epi32(high, pixels, _mm512_set1_epi32(words[2]));
    }
    AVX512 __m512i shifted() const {
        const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(high, 16), _mm512_slli_epi32(middle, 8));
        const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(upper, low), _mm512_set1_epi32(HALF));
        return _mm512_srai_epi32(sum, WEIGHT_BITS);
    }
};

AVX512 inline __m128i load128(const std::uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

AVX512 inline __m512i four_rows(const std::uint8_t* const* from, std::size_t at) {
    __m512i rows = _mm512_castsi128_si512(load128(from[0] + at));
    rows = _mm512_inserti32x4(rows, load128(from[1] + at), 1);
    rows = _mm512_inserti32x4(rows, load128(from[2] + at), 2);
    return _mm512_inserti32x4(rows, load128(from[3] + at), 3);
}

// Each 128-bit lane is a row: R, G, B and nothing, each of four pixels side by side.
AVX512 void across_avx512(const PackedWeights& weights, const std::uint8_t* const* from,
                          std::uint8_t* const* to) {
    const __m512i planes =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const std::size_t outputs = weights.first.size();
    for (std::size_t i = 0; i < outputs; ++i) {
        const std::int32_t* words = weights.of(i);
        std::size_t at = 3 * static_cast<std::size_t>(weights.first[i]);
        Sums512 a, b;
        a.start(), b.start();
        for (int group = weights.groups[i]; group; --group, words += 3, at += 12) {
            a.add(_mm512_shuffle_epi8(four_rows(from, at), planes), words);
            b.add(_mm512_shuffle_epi8(four_rows(from + 4, at), planes), words);
        }
        const __m512i zero = _mm512_setzero_si512();
        alignas(16) std::uint32_t pixels[ROWS];
        auto* stored = reinterpret_cast<__m128i*>(pixels);
        _mm_store_si128(stored, _mm512_cvtusepi32_epi8(_mm512_max_epi32(a.shifted(), zero)));
        _mm_store_si128(stored + 1, _mm512_cvtusepi32_epi8(_mm512_max_epi32(b.shifted(), zero)));
        store_pixels<ROWS>(pixels, i, i + 1 == outputs, to);
    }
}

AVX512 void down_avx512(const PackedWeights& weights, int output, const std::uint8_t* const* rows,
                        std::size_t row_bytes, std::uint8_t* to) {
    constexpr std::size_t BLOCK = 64;
    for (std::size_t x = 0; x < row_bytes; x += BLOCK) {
        const std::size_t rest = row_bytes - x;
        const __mmask64 mask = rest >= BLOCK ? ~__mmask64{0} : (__mmask64{1} << rest) - 1;
        const std::int32_t* words = weights.of(static_cast<std::size_t>(output));
        const std::uint8_t* const* row = rows;
        Sums512 sums[4];
        for (Sums512& each : sums) each.start();
        for (int group = weights.groups[output]; group; --group, words += 3, row += TAPS) {
            const __m512i a = _mm512_maskz_loadu_epi8(mask, row[0] + x);
            const __m512i b = _mm512_maskz_loadu_epi8(mask, row[1] + x);
            const __m512i c = _mm512_maskz_loadu_epi8(mask, row[2] + x);
            const __m512i d = _mm512_maskz_loadu_epi8(mask, row[3] + x);
            const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
            const __m512i ab2 = _mm512_unpackhi_epi8(a, b), cd2 = _mm512_unpackhi_epi8(c, d);
            sums[0].add(_mm512_unpacklo_epi16(ab, cd), words);
            sums[1].add(_mm512_unpackhi_epi16(ab, cd), words);
            sums[2].add(_mm512_unpacklo_epi16(ab2, cd2), words);
            sums[3].add(_mm512_unpackhi_epi16(ab2, cd2), words);
        }
        const __m512i left = _mm512_packs_epi32(sums[0].shifted(), sums[1].shifted());
        const __m512i right = _mm512_packs_epi32(sums[2].shifted(), sums[3].shifted());
        _mm512_mask_storeu_epi8(to + x, mask, _mm512_packus_epi16(left, right));
    }
}

#undef AVX512

#endif

}  // namespace

const std::vector<ResizeKernels>& resize_kernels() {
    static const std::vector<ResizeKernels> supported = [] {
        std::vector<ResizeKernels> found;
#ifdef UNIECS_X86
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
            found.push_back({"avx512", pack_avx512, across_avx512, down_avx512});
        if (__builtin_cpu_supports("avx2")) found.push_back({"avx2", pack_avx2, across_avx2, down_avx2});
#endif
        found.push_back({"portable", pack_portable, across_portable, down_portable});
        return found;
    }();
    return supported;
}

}  // namespace uniecs
