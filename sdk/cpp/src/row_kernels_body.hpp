// The kernels of row_kernels.hpp for one set of instructions: row_kernels.cpp includes this once for each, in
// a namespace of its own, which defines LANES (floats of a vector), INSTRUCTIONS (their name), half_lanes
// (LANES float16 as floats) and narrow_lanes (the other way). No #pragma once.

using Floats = float __attribute__((vector_size(LANES * 4)));
using Ints = std::int32_t __attribute__((vector_size(LANES * 4)));
constexpr std::size_t VECTORS = PANEL / LANES;

inline Floats load(const float* from) {
    Floats made;
    std::memcpy(&made, from, sizeof made);
    return made;
}

inline void store(const Floats& value, float* to) { std::memcpy(to, &value, sizeof value); }

inline Floats all(float value) { return value - Floats{}; }

inline float sum(const Floats& of) {
    float parts[LANES], total = 0;
    store(of, parts);
    for (std::size_t half = LANES / 2; half; half /= 2)
        for (std::size_t i = 0; i < half; ++i) parts[i] += parts[i + half];
    return total + parts[0];
}

// e^x to two units in the last place: 2^n by the exponent's bits, times Taylor's series of the rest.
inline Floats exponential(Floats x) {
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: what is added to it keeps no fraction
    const Floats n = (x * 1.44269504f + ROUND) - ROUND;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats series = all(1.0f / 5040);
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        series = series * r + factor;
    const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
    Floats power;
    std::memcpy(&power, &bits, sizeof power);
    return series * power;
}

bool halve(const float* x, std::size_t size, std::uint16_t* out) {
    Ints differences{};
    for (std::size_t i = 0; i < size; i += LANES) {
        narrow_lanes(x + i, out + i);
        Ints before, after;
        const Floats back = half_lanes(out + i);
        std::memcpy(&before, x + i, sizeof before);
        std::memcpy(&after, &back, sizeof after);
        differences |= before ^ after;
    }
    for (std::size_t i = 0; i < LANES; ++i)
        if (differences[i]) return false;
    return true;
}

template <bool HALF>
inline auto at(const void* from, std::size_t place) {
    if constexpr (HALF)
        return static_cast<const std::uint16_t*>(from) + place;
    else
        return static_cast<const float*>(from) + place;
}

template <bool HALF>
inline Floats weights(const void* from, std::size_t place) {
    if constexpr (HALF)
        return half_lanes(at<HALF>(from, place));
    else
        return load(at<HALF>(from, place));
}

// How far ahead weights are fetched: they come from memory but once, and few rows leave no time to wait.
constexpr std::size_t ROWS_AHEAD = 128;

// out (ROWS, WIDE vectors) = x w + bias, of which each row of `w` is `stride` from the next.
template <bool HALF, std::size_t ROWS, std::size_t WIDE>
inline void product_rows(const float* x, std::size_t x_stride, const void* w, std::size_t stride,
                         std::size_t depth, const float* bias, float* out, std::size_t out_stride,
                         std::size_t column) {
    Floats sums[ROWS][WIDE] = {};
    for (std::size_t v = 0; v < WIDE && bias; ++v)
        for (std::size_t row = 0; row < ROWS; ++row) sums[row][v] = load(bias + column + v * LANES);
    for (std::size_t k = 0; k < depth; ++k) {
        Floats each[WIDE];
        __builtin_prefetch(at<HALF>(w, (k + ROWS_AHEAD) * stride + column));
        for (std::size_t v = 0; v < WIDE; ++v) each[v] = weights<HALF>(w, k * stride + column + v * LANES);
        for (std::size_t row = 0; row < ROWS; ++row)
            for (std::size_t v = 0; v < WIDE; ++v) sums[row][v] += x[row * x_stride + k] * each[v];
    }
    for (std::size_t row = 0; row < ROWS; ++row)
        for (std::size_t v = 0; v < WIDE; ++v)
            store(sums[row][v], out + row * out_stride + column + v * LANES);
}

// PANEL columns. Two vectors of many rows read least for what they compute; few rows need more vectors, so
// that sums do not wait for one another.
template <bool HALF>
inline void product_panel(const float* x, std::size_t x_stride, std::size_t rows, const void* w,
                          std::size_t stride, std::size_t depth, const float* bias, float* out,
                          std::size_t out_stride) {
    constexpr std::size_t MOST = LANES == 16 ? 8 : 6;  // as many sums as the registers hold
    std::size_t row = 0;
    const auto run = [&](auto count) {
        constexpr std::size_t ROWS = count(), WIDE = ROWS > 2 ? 2 : VECTORS;
        for (std::size_t column = 0; column < PANEL; column += WIDE * LANES)
            product_rows<HALF, ROWS, WIDE>(x + row * x_stride, x_stride, w, stride, depth, bias,
                                           out + row * out_stride, out_stride, column);
        row += ROWS;
    };
    while (row + MOST <= rows) run(std::integral_constant<std::size_t, MOST>());
    if (row + 4 <= rows) run(std::integral_constant<std::size_t, 4>());
    if (row + 2 <= rows) run(std::integral_constant<std::size_t, 2>());
    if (row < rows) run(std::integral_constant<std::size_t, 1>());
}

void product(const float* x, std::size_t rows, const Columns& w, const float* bias, float* out,
             std::size_t stride) {
    for (std::size_t column = 0; column < w.count; column += PANEL) {
        const float* some = bias ? bias + column : nullptr;
        const std::size_t place = column * w.depth;
        if (w.half)
            product_panel<true>(x, w.depth, rows, static_cast<const std::uint16_t*>(w.weights) + place, PANEL,
                                w.depth, some, out + column, stride);
        else
            product_panel<false>(x, w.depth, rows, static_cast<const float*>(w.weights) + place, PANEL,
                                 w.depth, some, out + column, stride);
    }
}

void layer_norm(const float* x, std::size_t rows, std::size_t dim, const float* gain, const float* bias,
                float epsilon, float* out) {
    for (std::size_t row = 0; row < rows; ++row, x += dim, out += dim) {
        Floats total{}, squares{};
        for (std::size_t i = 0; i < dim; i += LANES) total += load(x + i);
        const float mean = sum(total) / static_cast<float>(dim);
        for (std::size_t i = 0; i < dim; i += LANES) {
            const Floats off = load(x + i) - mean;
            squares += off * off;
        }
        const float scale = 1 / std::sqrt(sum(squares) / static_cast<float>(dim) + epsilon);
        for (std::size_t i = 0; i < dim; i += LANES)
            store((load(x + i) - mean) * scale * load(gain + i) + load(bias + i), out + i);
    }
}

void blend(const float* x, const float* logits, std::size_t rows, std::size_t dim, const float* attended,
           std::size_t stride, float* out) {
    for (std::size_t row = 0; row < rows; ++row, x += dim, logits += dim, attended += stride, out += dim)
        for (std::size_t i = 0; i < dim; i += LANES) {
            const Floats gate = 1 / (1 + exponential(-load(logits + i))), own = load(x + i);
            store(gate * load(attended + i) + (1 - gate) * own, out + i);
        }
}

void gelu(float* x, std::size_t size) {
    // erf by Abramowitz and Stegun 7.1.26, to 1.5e-7.
    for (std::size_t i = 0; i < size; i += LANES) {
        const Floats value = load(x + i), scaled = value * 0.70710678f;
        const Floats positive = scaled < 0.0f ? -scaled : scaled;
        const Floats t = 1 / (1 + 0.3275911f * positive);
        Floats series = all(1.061405429f);
        for (float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
            series = series * t + factor;
        const Floats erf = 1 - series * t * exponential(-positive * positive);
        store(0.5f * value * (1 + (scaled < 0.0f ? -erf : erf)), x + i);
    }
}

float largest(const float* x, std::size_t size) {
    Floats each = all(x[0]);
    std::size_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        const Floats some = load(x + i);
        each = some > each ? some : each;
    }
    float most = each[0];
    for (std::size_t lane = 1; lane < LANES; ++lane) most = each[lane] > most ? each[lane] : most;
    for (; i < size; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

// In place: e^(x - most) of `size` of the `padded` floats, divided by their sum; 0 behind them.
void softmax(float* x, std::size_t size, std::size_t padded) {
    const float most = largest(x, size);
    for (std::size_t i = 0; i < padded; i += LANES) store(exponential(load(x + i) - most), x + i);
    for (std::size_t i = size; i < padded; ++i) x[i] = 0;
    Floats sums{};
    for (std::size_t i = 0; i < padded; i += LANES) sums += load(x + i);
    const float scale = 1 / sum(sums);
    for (std::size_t i = 0; i < padded; i += LANES) store(load(x + i) * scale, x + i);
}

void attention(const Queries& queries, const KeysAndValues& others, std::size_t heads, std::size_t width,
               float* room, float* out, std::size_t stride) {
    const std::size_t rows = others.rows, padded = (rows + PANEL - 1) / PANEL * PANEL;
    float *keys = room, *scores = room + width * padded;
    const float scale = 1 / std::sqrt(static_cast<float>(width));
    for (std::size_t first = 0; first < heads * width; first += width) {
        const float *q = queries.q + first, *k = others.k + first, *v = others.v + first;
        for (std::size_t i = 0; i < width; ++i) {  // turned, so that the scores of a query are one row
            for (std::size_t row = 0; row < rows; ++row)
                keys[i * padded + row] = k[row * others.stride + i] * scale;
            std::fill(keys + i * padded + rows, keys + (i + 1) * padded, 0.0f);
        }
        for (std::size_t column = 0; column < padded; column += PANEL)
            product_panel<false>(q, queries.stride, queries.rows, keys + column, padded, width, nullptr,
                                 scores + column, padded);
        for (std::size_t row = 0; row < queries.rows; ++row) softmax(scores + row * padded, rows, padded);
        for (std::size_t column = 0; column < width; column += PANEL)
            product_panel<false>(scores, padded, queries.rows, v + column, others.stride, rows, nullptr,
                                 out + first + column, stride);
    }
}

void softmax_columns(float* x, std::size_t rows, std::size_t columns) {
    for (std::size_t column = 0; column < columns; column += LANES) {  // one column in each lane
        Floats most = load(x + column), total{};
        for (std::size_t row = 1; row < rows; ++row) {
            const Floats each = load(x + row * PANEL + column);
            most = each > most ? each : most;
        }
        for (std::size_t row = 0; row < rows; ++row) {
            const Floats each = exponential(load(x + row * PANEL + column) - most);
            store(each, x + row * PANEL + column);
            total += each;
        }
        for (std::size_t row = 0; row < rows; ++row)
            store(load(x + row * PANEL + column) / total, x + row * PANEL + column);
    }
}

void pool(const float* x, std::size_t rows, std::size_t dim, const float* weights, float* out) {
    for (std::size_t i = 0; i < dim; i += LANES) {
        Floats total{};
        for (std::size_t row = 0; row < rows; ++row) total += weights[row * PANEL] * load(x + row * dim + i);
        store(total, out + i);
    }
}

void add(const float* x, std::size_t size, float* out) {
    for (std::size_t i = 0; i < size; i += LANES) store(load(out + i) + load(x + i), out + i);
}

void mean(const float* x, std::size_t rows, std::size_t columns, std::size_t stride, float* out) {
    for (std::size_t i = 0; i < columns; i += LANES) {
        Floats total{};
        for (std::size_t row = 0; row < rows; ++row) total += load(x + row * stride + i);
        store(total / static_cast<float>(rows), out + i);
    }
}

constexpr RowKernels KERNELS{INSTRUCTIONS, halve,           product, layer_norm, blend, gelu,
                             attention,    softmax_columns, pool,    add,        mean};
