// The int8 variant on OpenVINO.
#pragma once

#include <memory>
#include <openvino/op/constant.hpp>
#include <openvino/openvino.hpp>
#include <vector>

#include "int8_recipe.hpp"

namespace uniecs {

// Put FakeQuantize on `inputs` of a model and on the weights that meet them: as it compiles the model,
// OpenVINO makes int8 matrix products of them. Throws BundleError for inputs that do not fit the model.
void quantize(const std::shared_ptr<ov::Model>& model, const std::vector<QuantizedInput>& inputs);

// A constant, also behind a Convert; null for any other node.
std::shared_ptr<ov::op::v0::Constant> constant_of(std::shared_ptr<ov::Node> node);

}  // namespace uniecs
