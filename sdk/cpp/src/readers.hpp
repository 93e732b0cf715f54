// Grace periods: a writer waits until every search that began before has ended, searches never wait. And
// their turn at the CPU: a writer's threads pause for them.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
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
        const std::int64_t now = milliseconds();
        if (latest_.load(std::memory_order_relaxed) != now) latest_.store(now, std::memory_order_relaxed);
        return Guard(count);
    }

    // For a thread of a writer, every few microseconds: a short pause after each `STRETCH` while there are
    // searches, of this graph or another. Where there are no more CPUs than threads, the system would leave
    // it one for milliseconds.
    static void give_way() {
        using Clock = std::chrono::steady_clock;
        thread_local Clock::time_point paused;
        if (Clock::now() - paused < STRETCH) return;
        if (milliseconds() - latest_.load(std::memory_order_relaxed) <= LATELY_MS)
            std::this_thread::sleep_for(PAUSE);
        paused = Clock::now();
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
    static constexpr std::chrono::microseconds STRETCH{150}, PAUSE{100};
    static constexpr std::int64_t LATELY_MS = 100;
    static constexpr std::size_t PLACES = 64;

    static std::int64_t milliseconds() {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
    }

    struct alignas(64) Place {
        std::atomic<std::uint64_t> of_phase[2] = {};
    };
    mutable std::array<Place, PLACES> counters_;
    std::atomic<std::uint32_t> phase_{0};
    static inline std::atomic<std::int64_t> latest_{-LATELY_MS - 1};  // when any graph was last searched
};

}  // namespace uniecs
