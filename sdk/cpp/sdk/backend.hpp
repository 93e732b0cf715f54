// What an engine must do for the encoder: run the three graphs of a bundle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "int8_recipe.hpp"

namespace uniecs {

// A batch of one kind: images, texts, or both. All rows have what the batch has.
struct Batch {
    std::size_t size = 0;
    const float* pixel_values = nullptr;  // (size, 3, height, width), or none
    std::size_t height = 0, width = 0;
    const std::int64_t* input_ids = nullptr;       // (size, tokens), or none
    const std::int64_t* attention_mask = nullptr;  // as input_ids
    std::size_t tokens = 0;
};

class Backend {
  public:
    virtual ~Backend() = default;

    // Unit embeddings (size, embed_dim) of a batch into `out`; thread-safe. Throws BackendError.
    virtual void embed(const Batch& batch, float* out) = 0;
};

// The three graphs of a bundle as ONNX files, and for int8 how.
struct Graphs {
    std::string image_encoder, text_encoder, fusion;
    Int8Recipe int8;
};

// OpenVINO on the CPU, which compiles a graph on its first use. `precision` is "fp32", "bf16" or "int8";
// `threads` 0 leaves their number to OpenVINO. Throws BackendError for what this CPU lacks and for graphs
// that cannot be compiled.
std::unique_ptr<Backend> openvino_backend(Graphs graphs, std::size_t embed_dim, const std::string& precision,
                                          unsigned threads);

struct Bundle;

// TensorRT in fp16 on the GPU that CUDA lists first, from the engines that `uniecs build` made; it builds
// none. Throws BackendError, EngineMismatchError. There only in a library built with UNIECS_TENSORRT.
std::unique_ptr<Backend> tensorrt_backend(const Bundle& bundle);

}  // namespace uniecs
