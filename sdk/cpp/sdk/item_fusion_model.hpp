// The fusion graph as an ItemFusion.
#pragma once

#include <memory>
#include <openvino/openvino.hpp>
#include <optional>

#include "../src/item_fusion.hpp"

namespace uniecs {

// None for a fusion that ItemFusion does not take, and on a CPU without AVX2. Vectors are constants with the
// names of the trainer (GatedFusion). Matrices have lost theirs, turned at export: each is what meets the
// bias of its name.
std::optional<ItemFusion> item_fusion(const std::shared_ptr<ov::Model>& model, std::shared_ptr<Crew> crew);

}  // namespace uniecs
