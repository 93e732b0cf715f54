// Changes that leave searches their share of the CPUs; pacing.py is the same for Python's lock.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace uniecs {

inline constexpr std::chrono::microseconds STRETCH{150}, PAUSE{100};
inline constexpr std::int64_t LATELY_MS = 100;

inline std::int64_t milliseconds_now() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

inline std::atomic<std::int64_t> last_search{-LATELY_MS - 1};  // of any graph of the process, in ms

// A search begins.
inline void note_search() {
    const std::int64_t now = milliseconds_now();
    if (last_search.load(std::memory_order_relaxed) != now) last_search.store(now, std::memory_order_relaxed);
}

// For a thread that changes a graph, every few microseconds: a short pause after each `STRETCH` while there
// are searches. Where there are no more CPUs than threads, the system would leave it one for milliseconds.
inline void give_way() {
    using Clock = std::chrono::steady_clock;
    thread_local Clock::time_point paused;
    if (Clock::now() - paused < STRETCH) return;
    if (milliseconds_now() - last_search.load(std::memory_order_relaxed) <= LATELY_MS)
        std::this_thread::sleep_for(PAUSE);
    paused = Clock::now();
}

}  // namespace uniecs
