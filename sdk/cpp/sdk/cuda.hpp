// What of CUDA the TensorRT backend holds: freed in its destructors, errors thrown.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "uniecs/errors.hpp"

namespace uniecs::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw BackendError(std::string("CUDA failed to ") + what + ": " + cudaGetErrorString(status));
}

struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
};
struct FreeHost {
    void operator()(void* memory) const { cudaFreeHost(memory); }
};
using Device = std::unique_ptr<void, Free>;      // memory of the GPU
using Pinned = std::unique_ptr<void, FreeHost>;  // of the host, which the GPU copies from and to

inline Device device(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocate memory of the GPU");
    return Device(memory);
}

inline Pinned pinned(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, bytes), "allocate pinned memory");
    return Pinned(memory);
}

class Stream {
  public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    cudaStream_t get() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "run what was asked"); }

  private:
    cudaStream_t stream_ = nullptr;
};

struct DestroyGraph {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, DestroyGraph>;

}  // namespace uniecs::cuda
