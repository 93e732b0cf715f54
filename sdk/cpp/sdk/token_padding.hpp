// A single photo in bf16 or int8 on OpenVINO: spare tokens, so that its matrix products split evenly.
#pragma once

#include <openvino/openvino.hpp>

namespace uniecs {

// Has an image encoder compute with spare tokens at batch 1, in place; returns their number. No token attends
// to them and the output has none. 0 and the model as it is where that would win nothing, or where it is not
// a Transformer as uniecs.export writes it. The why and the how: sdk/uniecs/backends/token_padding.py, which
// does the same.
std::size_t pad_tokens(const std::shared_ptr<ov::Model>& model);

}  // namespace uniecs
