// What one call at a time runs on: a stream, execution contexts, and memory on both sides of the bus.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <list>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "backend.hpp"
#include "cuda.hpp"
#include "engine_cache.hpp"

namespace uniecs {

// The engines of a bundle, and the sizes of what they take. They must outlive their workers.
struct Engines {
    std::unique_ptr<nvinfer1::ICudaEngine> image_encoder, text_encoder, fusion;
    Profile profile;
    std::size_t embed_dim, height, width;
};

// A job that cannot be captured as a CUDA graph; the worker is not fit for use afterwards.
class CaptureError : public BackendError {
    using BackendError::BackendError;
};

// Serves one call at a time, from any thread. A tensor has one place on the GPU, as large as the profile
// allows: the encoders write their tokens where the fusion reads them.
class Worker {
  public:
    // With `captures`, small jobs that come again become CUDA graphs. Throws BackendError.
    Worker(const Engines& engines, bool captures);

    // `batch` is within the profile. Throws BackendError, CaptureError.
    void embed(const Batch& batch, float* out);

  private:
    // What a call runs: which encoders, and on which sizes.
    struct Job {
        bool image, text;
        std::size_t size, tokens;  // tokens: of the text mask, 1 without a text

        auto parts() const { return std::tie(image, text, size, tokens); }
        bool operator<(const Job& other) const { return parts() < other.parts(); }
        bool operator==(const Job& other) const { return parts() == other.parts(); }
    };

    using Context = std::unique_ptr<nvinfer1::IExecutionContext>;
    struct Contexts {
        Context image_encoder, text_encoder, fusion;
    };

    // A CUDA graph, and the contexts it was captured from: each needs its own, for their state is baked in.
    struct Captured {
        Job job;
        Contexts contexts;
        cuda::Graph graph;
    };

    // Memory of the host and of the GPU for one tensor.
    struct Place {
        cuda::Pinned host;
        cuda::Device device;

        template <typename T>
        T* as() const {
            return static_cast<T*>(host.get());
        }
    };

    Context context(nvinfer1::ICudaEngine& engine) const;
    Contexts contexts(const Job& job) const;
    void fill(const Job& job, const Batch& batch) const;
    void bind(const Job& job, const Contexts& contexts) const;
    void enqueue(const Job& job, const Contexts& contexts) const;
    const Captured* graph_of(const Job& job);
    Captured capture(const Job& job) const;

    const Engines& engines_;
    const bool captures_;
    cuda::Stream stream_;
    Place pixel_values_, input_ids_, mask_, indicator_, embedding_;
    cuda::Device image_tokens_, text_tokens_, zero_token_;
    std::size_t scratch_bytes_ = 0;
    cuda::Device scratch_;  // graphs of a job run one after the other: one serves all contexts
    Contexts contexts_;
    std::set<Job> seen_;
    std::list<Captured> captured_;  // the one used last comes first
};

}  // namespace uniecs
