// The weights of a network in an OpenVINO model: vectors by their names, matrices by the bias that they meet.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <openvino/opsets/opset8.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../src/named_arrays.hpp"

namespace uniecs {

using Node = std::shared_ptr<ov::Node>;

bool ends_with(const std::string& name, const std::string& end);
std::string without(const std::string& name, const std::string& end);

// The name of a constant in the trainer.
std::string name_of(const ov::Node& node);

// As one vector, or a matrix of two axes, turned if need be.
NamedArray array(const ov::opset8::Constant& from, bool turned = false);

// What a node of two inputs takes, before any factor 1 (which a Gemm brings).
std::array<Node, 2> sources(const ov::Node& node);

template <typename Kind>
std::vector<Node> takers(const ov::Node& node) {
    std::vector<Node> found;
    for (const auto& input : node.output(0).get_target_inputs()) {
        Node taker = input.get_node()->shared_from_this();
        if (ov::is_type<Kind>(taker)) found.push_back(std::move(taker));
    }
    return found;
}

// A linear layer and its matrix product.
struct LinearNode {
    std::string layer;
    std::shared_ptr<ov::opset8::MatMul> product;

    NamedArray weights() const;  // (in, out)
};

// Of the Add of its bias; none for any other node.
std::optional<LinearNode> linear_of(const ov::Node& node);

// Heads and width to which the last axis of a layer is reshaped; -1 for what follows from the other, or if it
// is not.
std::pair<std::int64_t, std::int64_t> split_of(const ov::Node& layer);

}  // namespace uniecs
