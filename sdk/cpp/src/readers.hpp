// Grace periods: a writer waits until every search that began before has ended, searches never wait.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace uniecs {

class Readers {
  public:
    class Guard {
      public:
        explicit Guard(std::atomic<std::uint64_t>& count) : count_(count) {}
        ~Guard() { count_.fetch_sub(1, std::memory_order_release); }
        Guard(const Guard&) = delete;
        Guard& operator=(const Guard&) = delete;

      private:
        std::atomic<std::uint64_t>& count_;
    };

    // Held by a search for as long as it looks at nodes.
    Guard enter() const {
        auto& count = counters_[std::hash<std::thread::id>{}(std::this_thread::get_id()) % PLACES]
                          .of_phase[phase_.load() & 1];
        count.fetch_add(1);
        return Guard(count);
    }

    // Returns once all searches that were under way have ended; for one writer at a time. Two flips, because
    // a search may read the phase before the first and count itself after it.
    void wait_for_all() {
        for (int flip = 0; flip < 2; ++flip) {
            const std::uint32_t old = phase_.fetch_add(1) & 1;
            for (auto& place : counters_)
                while (place.of_phase[old].load() != 0) std::this_thread::yield();
        }
    }

  private:
    static constexpr std::size_t PLACES = 64;
    struct alignas(64) Place {
        std::atomic<std::uint64_t> of_phase[2] = {};
    };
    mutable std::array<Place, PLACES> counters_;
    std::atomic<std::uint32_t> phase_{0};
};

}  // namespace uniecs
