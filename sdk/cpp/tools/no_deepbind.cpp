// For LD_PRELOAD under AddressSanitizer, which ends a process that opens a library with RTLD_DEEPBIND, as
// OpenVINO does: dlopen without that flag (docs/cpp.md).
#include <dlfcn.h>

extern "C" void* dlopen(const char* name, int flags) {
    using Dlopen = void* (*)(const char*, int);
    static const auto next = reinterpret_cast<Dlopen>(dlsym(RTLD_NEXT, "dlopen"));
    return next(name, flags & ~RTLD_DEEPBIND);
}
