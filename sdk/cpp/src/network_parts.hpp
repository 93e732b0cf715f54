// What the networks that run here are made of.
#pragma once

#include <cstddef>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

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
