// The calling thread's stack for signal handlers, put back where a scope ends.
#pragma once

#if defined(__linux__)
#include <signal.h>
#endif

namespace uniecs {

// OpenVINO gives the thread that makes its CPU plugin another one, and frees that with the plugin, in
// whatever thread and order. If it is still in use then, the next signal (Ctrl-C) ends the process.
class KeptSignalStack {
  public:
    KeptSignalStack(const KeptSignalStack&) = delete;
    KeptSignalStack& operator=(const KeptSignalStack&) = delete;

#if defined(__linux__)
    KeptSignalStack() : known_(sigaltstack(nullptr, &before_) == 0) {}
    ~KeptSignalStack() {
        // One that is too small for what the process may use by now (AMX) is refused; none is never unsafe.
        stack_t none{};
        none.ss_flags = SS_DISABLE;
        if (known_ && sigaltstack(&before_, nullptr)) sigaltstack(&none, nullptr);
    }

  private:
    stack_t before_{};
    bool known_;
#else
    KeptSignalStack() {}  // OpenVINO does so on Linux alone
#endif
};

}  // namespace uniecs
