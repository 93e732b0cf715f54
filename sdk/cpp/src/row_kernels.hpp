// What a Transformer does to a few rows of float32, in the vector instructions of this CPU, on one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace uniecs {

// Columns that are computed at once, whatever the instructions.
constexpr std::size_t PANEL = 32;

// Columns of a Matrix.
struct Columns {
    const void* weights;  // float16 if half
    bool half;
    std::size_t depth, count;
};

// Weights (depth, columns), in panels of PANEL columns that each lie in one piece; in float16 where that
// loses nothing, as it halves what is read.
class Matrix {
  public:
    Matrix() = default;
    // `weights` row by row. Zeros fill the last panel.
    Matrix(const float* weights, std::size_t depth, std::size_t columns);

    Columns all() const { return columns(0, columns_); }
    // `first` and `count` are multiples of PANEL.
    Columns columns(std::size_t first, std::size_t count) const;

  private:
    struct Free {
        void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{64}); }
    };

    using Room = std::unique_ptr<std::byte, Free>;
    static Room room(std::size_t bytes);

    std::size_t depth_ = 0, columns_ = 0;
    bool half_ = false;
    Room data_;
};

// Rows of `stride` floats; each has the heads one behind the other.
struct Queries {
    const float* q;
    std::size_t stride, rows;
};
struct KeysAndValues {
    const float *k, *v;
    std::size_t stride, rows;
};

// Rows of x lie one behind the other, `dim` long, a multiple of PANEL.
struct RowKernels {
    const char* instructions;
    // x, a multiple of PANEL, as float16 (on a boundary of 64 bytes); false if one of it has none.
    bool (*halve)(const float* x, std::size_t size, std::uint16_t* out);
    // out (rows, w.count) = x (rows, w.depth) w + bias; `bias` may be null. Rows of `out` are `stride` floats
    // apart.
    void (*product)(const float* x, std::size_t rows, const Columns& w, const float* bias, float* out,
                    std::size_t stride);
    // (x - mean) / sqrt(variance + epsilon) * gain + bias for each row; out may be x.
    void (*layer_norm)(const float* x, std::size_t rows, std::size_t dim, const float* gain,
                       const float* bias, float epsilon, float* out);
    // Eq. 4: g attended + (1 - g) x with g = sigmoid(logits). Rows of `attended` are `stride` floats apart, 0
    // for one row that serves all; out may be x or attended.
    void (*blend)(const float* x, const float* logits, std::size_t rows, std::size_t dim,
                  const float* attended, std::size_t stride, float* out);
    // x (1 + erf(x / sqrt(2))) / 2, in place.
    void (*gelu)(float* x, std::size_t size);
    // softmax(q k' / sqrt(width)) v to out (rows, heads * width), for each of the heads, each of `width`, a
    // multiple of PANEL. Rows of `out` are `stride` floats apart. `room` has attention_scratch(...) floats.
    void (*attention)(const Queries& queries, const KeysAndValues& others, std::size_t heads,
                      std::size_t width, float* room, float* out, std::size_t stride);
    // The softmax of each of the first `columns` of x (rows, PANEL), in place.
    void (*softmax_columns)(float* x, std::size_t rows, std::size_t columns);
    // The sum of the rows of x, each times its weight; weights are PANEL floats apart.
    void (*pool)(const float* x, std::size_t rows, std::size_t dim, const float* weights, float* out);
    // out += x.
    void (*add)(const float* x, std::size_t size, float* out);
    // The mean of `columns` of the rows of x, which are `stride` floats apart; out may be x.
    void (*mean)(const float* x, std::size_t rows, std::size_t columns, std::size_t stride, float* out);
};

std::size_t attention_scratch(std::size_t rows, std::size_t others, std::size_t width);

// The kernels of the best instructions here, or of those named; null where there are none.
const RowKernels* row_kernels(const std::string& instructions = "");

// What this CPU can use, the best first: avx512, avx2, or nothing.
std::vector<std::string> supported_row_kernels();

// Whether sums of int8 products are right on this CPU: with VNNI, or if it is no x86. Without, an engine's
// overflow.
bool has_byte_products();

}  // namespace uniecs
