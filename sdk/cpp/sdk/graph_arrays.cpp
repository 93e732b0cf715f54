#include "graph_arrays.hpp"

#include "openvino_int8.hpp"

namespace uniecs {

namespace op = ov::opset8;

namespace {

bool is_one(const Node& node) {
    const auto found = ov::as_type_ptr<op::Constant>(node);
    return found && ov::shape_size(found->get_shape()) == 1 && found->cast_vector<float>()[0] == 1;
}

}  // namespace

bool ends_with(const std::string& name, const std::string& end) {
    return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

std::string without(const std::string& name, const std::string& end) {
    return ends_with(name, end) ? name.substr(0, name.size() - end.size()) : name;
}

std::string name_of(const ov::Node& node) { return without(node.get_friendly_name(), ".float16"); }

NamedArray array(const op::Constant& from, bool turned) {
    const ov::Shape& shape = from.get_shape();
    const std::size_t size = ov::shape_size(shape);
    NamedArray made{1, size, from.cast_vector<float>()};
    if (shape.size() != 2) return made;
    made.rows = shape[turned ? 1 : 0];
    made.columns = shape[turned ? 0 : 1];
    if (turned) {
        const std::vector<float> values = made.values;
        for (std::size_t i = 0; i < size; ++i)
            made.values[i % made.rows * made.columns + i / made.rows] = values[i];
    }
    return made;
}

std::array<Node, 2> sources(const ov::Node& node) {
    std::array<Node, 2> found;
    for (std::size_t i = 0; i < 2; ++i) {
        Node each = node.get_input_node_shared_ptr(i);
        while (ov::is_type<op::Multiply>(each)) {
            const Node first = each->get_input_node_shared_ptr(0),
                       second = each->get_input_node_shared_ptr(1);
            if (is_one(first) == is_one(second)) break;
            each = is_one(first) ? second : first;
        }
        found[i] = each;
    }
    return found;
}

NamedArray LinearNode::weights() const {
    return array(*constant_of(product->get_input_node_shared_ptr(1)), product->get_transpose_b());
}

std::optional<LinearNode> linear_of(const ov::Node& node) {
    if (!ov::as_type<const op::Add>(&node)) return std::nullopt;
    const auto [first, second] = sources(node);
    for (const auto& [product, bias] : {std::pair(first, second), std::pair(second, first)}) {
        const auto matmul = ov::as_type_ptr<op::MatMul>(product);
        if (matmul && ends_with(name_of(*bias), ".bias") && constant_of(matmul->get_input_node_shared_ptr(1)))
            return LinearNode{without(name_of(*bias), ".bias"), matmul};
    }
    return std::nullopt;
}

std::pair<std::int64_t, std::int64_t> split_of(const ov::Node& layer) {
    for (const Node& reshape : takers<op::Reshape>(layer)) {
        const auto shape = constant_of(reshape->get_input_node_shared_ptr(1));
        if (shape && ov::shape_size(shape->get_shape()) == 4) {
            const auto axes = shape->cast_vector<std::int64_t>();
            return {axes[2], axes[3]};
        }
    }
    return {-1, -1};
}

}  // namespace uniecs
