// What the networks that run here are made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "crew.hpp"
#include "named_arrays.hpp"
#include "row_kernels.hpp"

namespace uniecs {

using Floats = std::vector<float>;

// x weight + bias.
struct Linear {
    Matrix weight;
    Floats bias;
};

struct Norm {
    Floats gain, bias;
};

// Rows at a time of a product that has many: what they read stays in the caches.
constexpr std::size_t CHUNK_ROWS = 48;

inline std::size_t chunks_of(std::size_t rows) { return std::max<std::size_t>(1, rows / CHUNK_ROWS); }

// Of a network so wide, for so many rows: more have less than two pieces each of its least product.
inline std::size_t useful_threads(std::size_t dim, std::size_t rows) {
    return std::max<std::size_t>(1, chunks_of(rows) * dim / PANEL / 2);
}

// Rows of PANEL columns of a product.
struct Piece {
    std::size_t row, rows, column;
};

// out (rows, count) = x by, of it `count` columns from `first` on, in pieces that the threads share;
// done(piece) follows for each. `bias` may be null.
template <typename Done>
void shared_product(Steps& steps, const RowKernels& run, const Matrix& by, std::size_t first,
                    std::size_t count, const float* bias, const float* x, std::size_t rows, float* out,
                    const Done& done) {
    const std::size_t panels = count / PANEL, chunks = chunks_of(rows);
    steps.each(chunks * panels, [&](std::size_t part, std::size_t) {
        const std::size_t row = part / panels * CHUNK_ROWS, column = part % panels * PANEL,
                          some = part / panels + 1 == chunks ? rows - row : CHUNK_ROWS;
        const Columns weights = by.columns(first + column, PANEL);
        run.product(x + row * weights.depth, some, weights, bias ? bias + column : nullptr,
                    out + row * count + column, count);
        done(Piece{row, some, column});
    });
}
template <typename Done>
void shared_product(Steps& steps, const RowKernels& run, const Linear& by, const float* x, std::size_t rows,
                    float* out, const Done& done) {
    shared_product(steps, run, by.weight, 0, by.bias.size(), by.bias.data(), x, rows, out, done);
}
inline void shared_product(Steps& steps, const RowKernels& run, const Linear& by, const float* x,
                           std::size_t rows, float* out) {
    shared_product(steps, run, by, x, rows, out, [](const Piece&) {});
}

// The first product of a feed-forward network and its activation: `wide` (rows, hidden).
inline void shared_widening(Steps& steps, const RowKernels& run, const Linear& by, const float* x,
                            std::size_t rows, float* wide) {
    shared_product(steps, run, by, x, rows, wide, [&](const Piece& piece) {
        for (std::size_t row = piece.row; row < piece.row + piece.rows; ++row)
            run.gelu(wide + row * by.bias.size() + piece.column, PANEL);
    });
}

// The arrays, found by name, of the shape that is expected.
class Source {
  public:
    explicit Source(FindArray find) : find_(std::move(find)) {}

    NamedArray array(const std::string& name) const {
        std::optional<NamedArray> found = find_(name);
        if (!found) throw std::invalid_argument("the network has no " + name);
        return std::move(*found);
    }

    Floats matrix(const std::string& name, std::size_t rows, std::size_t columns) const {
        NamedArray found = array(name);
        if (found.rows != rows || found.columns != columns || found.values.size() != rows * columns)
            throw std::invalid_argument(name + " is (" + std::to_string(found.rows) + ", " +
                                        std::to_string(found.columns) + "); expected (" +
                                        std::to_string(rows) + ", " + std::to_string(columns) + ")");
        return std::move(found.values);
    }

    Norm norm(const std::string& name, std::size_t dim) const {
        return {matrix(name + ".weight", 1, dim), matrix(name + ".bias", 1, dim)};
    }

    Linear linear(const std::string& name, std::size_t depth, std::size_t columns) const {
        return {Matrix(matrix(name + ".weight", depth, columns).data(), depth, columns),
                matrix(name + ".bias", 1, columns)};
    }

    bool has(const std::string& name) const { return find_(name).has_value(); }

  private:
    FindArray find_;
};

// Room for what is computed on the way, some megabytes for a photo: lent from call to call, as making it anew
// costs page faults, and not kept by each thread, as a service may have hundreds. Nobody waits for the mutex:
// in a process that was forked while a thread had it, it stays locked.
class Rooms {
  public:
    class Lent {
      public:
        Lent(Rooms& rooms, std::size_t floats) : rooms_(rooms) {
            {
                const std::unique_lock<std::mutex> lock(rooms_.mutex_, std::try_to_lock);
                if (lock && !rooms_.idle_.empty()) {
                    room_ = std::move(rooms_.idle_.back());
                    rooms_.idle_.pop_back();
                }
            }
            if (room_.size() < floats) room_.resize(floats);
        }
        ~Lent() {
            const std::unique_lock<std::mutex> lock(rooms_.mutex_, std::try_to_lock);
            if (lock && rooms_.idle_.size() < KEPT) rooms_.idle_.push_back(std::move(room_));
        }
        Lent(const Lent&) = delete;
        Lent& operator=(const Lent&) = delete;
        float* data() { return room_.data(); }

      private:
        Rooms& rooms_;
        Floats room_;
    };

    Rooms() { idle_.reserve(KEPT); }

  private:
    static constexpr std::size_t KEPT = 8;
    std::mutex mutex_;
    std::vector<Floats> idle_;
};

}  // namespace uniecs
