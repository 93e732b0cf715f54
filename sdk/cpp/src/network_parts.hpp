// What the networks that run here are made of.
#pragma once

#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

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

// Room for what is computed on the way, some megabytes for a photo: lent from call to call, as making it anew
// costs page faults, and not kept by each thread, as a service may have hundreds.
class Rooms {
  public:
    class Lent {
      public:
        Lent(Rooms& rooms, std::size_t floats) : rooms_(rooms) {
            {
                const std::lock_guard<std::mutex> lock(rooms_.mutex_);
                if (!rooms_.idle_.empty()) {
                    room_ = std::move(rooms_.idle_.back());
                    rooms_.idle_.pop_back();
                }
            }
            if (room_.size() < floats) room_.resize(floats);
        }
        ~Lent() {
            const std::lock_guard<std::mutex> lock(rooms_.mutex_);
            if (rooms_.idle_.size() < KEPT) rooms_.idle_.push_back(std::move(room_));
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
