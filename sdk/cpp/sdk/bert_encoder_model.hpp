// The text encoder's graph as a BertEncoder.
#pragma once

#include <memory>
#include <openvino/openvino.hpp>
#include <optional>

#include "../src/bert_encoder.hpp"

namespace uniecs {

// None for an encoder that BertEncoder does not take, and on a CPU without AVX2. A BERT with another
// activation than gelu has other operations.
std::optional<BertEncoder> bert_encoder(const std::shared_ptr<ov::Model>& model, std::shared_ptr<Crew> crew);

}  // namespace uniecs
