// Threads that share the steps of a computation with the thread that owns it.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "process_id.hpp"
#include "x86.hpp"

namespace uniecs {

// The steps of one call, each of which is done when all its parts are. A helper that the system keeps waiting
// takes no part, and may find the call over; nobody waits for it.
class Steps {
  public:
    // Some thread's part in what follows, until `end`, or until nothing came for a while: the caller has no
    // CPU then, and this thread may be in its way.
    void help() {
        const std::size_t thread = ++helpers_;
        for (unsigned spins = 0; spins < SPINS && !over_.load(std::memory_order_acquire);)
            if (take(thread))
                spins = 0;
            else
                wait(spins);
    }

    // work(part, thread) for each part below `parts`, `thread` being 0 for the caller; returns when all are
    // done. `work` must not throw.
    template <typename Work>
    void each(std::size_t parts, const Work& work) {
        work_ = &work;
        call_ = [](const void* what, std::size_t part, std::size_t thread) {
            (*static_cast<const Work*>(what))(part, thread);
        };
        done_.store(0, std::memory_order_relaxed);
        // The step keeps a helper from taking this one's parts for the last one's.
        left_.store(++step_ << 32 | parts, std::memory_order_release);
        while (take(0)) {
        }
        for (unsigned spins = 0; done_.load(std::memory_order_acquire) < parts;) wait(spins);
    }

    void end() { over_.store(true, std::memory_order_release); }

  private:
    static constexpr unsigned SPINS = 4096;

    // Does one part; false if none is left.
    bool take(std::size_t thread) {
        std::uint64_t left = left_.load(std::memory_order_acquire);
        do
            if (!(left & UINT32_MAX)) return false;
        while (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                            std::memory_order_acquire));
        call_(work_, static_cast<std::size_t>((left & UINT32_MAX) - 1), thread);
        done_.fetch_add(1, std::memory_order_release);
        return true;
    }

    // Spinning, as a step takes no longer than waking a thread; but not for long, where others need the CPU.
    static void wait(unsigned& spins) {
        if (++spins > SPINS) std::this_thread::yield();
#ifdef UNIECS_X86
        _mm_pause();
#endif
    }

    std::atomic<std::uint64_t> left_{0};  // the step, and how many of its parts nobody has begun
    std::atomic<std::size_t> done_{0}, helpers_{0};
    std::atomic<bool> over_{false};
    std::uint64_t step_ = 0;
    const void* work_ = nullptr;
    void (*call_)(const void*, std::size_t, std::size_t) = nullptr;
};

// Threads that wait for calls to help with.
class Helpers {
  public:
    explicit Helpers(std::size_t threads) {
        threads_.reserve(threads);
        try {
            for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
        } catch (const std::exception&) {  // those that there are do all of it
        }
    }

    ~Helpers() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ended_ = true;
        }
        called_.notify_all();
        for (std::thread& each : threads_) each.join();
    }

    Helpers(const Helpers&) = delete;
    Helpers& operator=(const Helpers&) = delete;

    bool of_this_process() const { return process_ == process_id(); }

    // A call that is under way, the `number`-th of them. Counted here, as those of the process that this one
    // was forked from never end.
    struct Call {
        explicit Call(Helpers& helpers) : calls(helpers.under_way_) {}
        ~Call() { --calls; }
        std::atomic<std::size_t>& calls;
        const std::size_t number = ++calls;
    };

    void call(const std::shared_ptr<Steps>& steps, std::size_t wanted) {
        if (threads_.empty()) return;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            calls_.insert(calls_.end(), wanted, steps);
        }
        for (std::size_t i = 0; i < wanted; ++i) called_.notify_one();
    }

  private:
    void run() {
        for (;;) {
            std::shared_ptr<Steps> steps;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                called_.wait(lock, [&] { return ended_ || !calls_.empty(); });
                if (ended_) return;
                steps = std::move(calls_.front());
                calls_.pop_front();
            }
            steps->help();
        }
    }

    const unsigned process_ = process_id();
    std::atomic<std::size_t> under_way_{0};
    std::mutex mutex_;
    std::condition_variable called_;
    std::deque<std::shared_ptr<Steps>> calls_;
    bool ended_ = false;
    std::vector<std::thread> threads_;
};

// `threads` for all calls that are under way, each of which has an equal share of what there is as it begins.
class Crew {
  public:
    // At least one.
    explicit Crew(std::size_t threads) : threads_(threads ? threads : 1) {}
    ~Crew() {
        Helpers* helpers = helpers_.load();
        if (helpers && helpers->of_this_process()) delete helpers;  // in a forked one its threads are not
    }
    Crew(const Crew&) = delete;
    Crew& operator=(const Crew&) = delete;

    // use(each, threads), where each(parts, work) is Steps::each and its `thread` is below `threads`, which
    // are at most `most`.
    template <typename Use>
    void share(std::size_t most, Use use) {
        Helpers& others = helpers();
        const Helpers::Call call(others);
        const std::size_t threads = std::min(most, threads_ / call.number);
        const auto steps = std::make_shared<Steps>();
        const Ended ended{*steps};
        if (threads > 1) others.call(steps, threads - 1);
        use(*steps, threads > 1 ? threads : 1);
    }

  private:
    struct Ended {
        Steps& steps;
        ~Ended() { steps.end(); }
    };

    Helpers& helpers() {
        Helpers* found = helpers_.load(std::memory_order_acquire);
        if (found && found->of_this_process()) return *found;
        // Those of the process that this one was forked from stay as they are: nothing of theirs can be
        // ended.
        auto made = std::make_unique<Helpers>(threads_ - 1);
        if (helpers_.compare_exchange_strong(found, made.get())) return *made.release();
        return *found;
    }

    std::size_t threads_;
    std::atomic<Helpers*> helpers_{nullptr};
};

}  // namespace uniecs
