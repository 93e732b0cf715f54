#include "item_fusion_model.hpp"

#include <algorithm>
#include <array>
#include <openvino/opsets/opset8.hpp>
#include <stdexcept>

#include "openvino_int8.hpp"

namespace uniecs {
namespace {

namespace op = ov::opset8;

using Node = std::shared_ptr<ov::Node>;

const std::string FIRST_QUERY = "image_sides.0.cross_attention.q", GATE = ".gate.linear";

bool ends_with(const std::string& name, const std::string& end) {
    return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

std::string without(const std::string& name, const std::string& end) {
    return ends_with(name, end) ? name.substr(0, name.size() - end.size()) : name;
}

std::string name_of(const ov::Node& node) { return without(node.get_friendly_name(), ".float16"); }

// As one vector, or a matrix of two axes, turned if need be.
NamedArray array(const op::Constant& from, bool turned = false) {
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

bool is_one(const Node& node) {
    const auto found = ov::as_type_ptr<op::Constant>(node);
    return found && ov::shape_size(found->get_shape()) == 1 && found->cast_vector<float>()[0] == 1;
}

// What a node of two inputs takes, before any factor 1 (which a Gemm brings).
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

template <typename Kind>
std::vector<Node> takers(const ov::Node& node) {
    std::vector<Node> found;
    for (const auto& input : node.output(0).get_target_inputs()) {
        Node taker = input.get_node()->shared_from_this();
        if (ov::is_type<Kind>(taker)) found.push_back(std::move(taker));
    }
    return found;
}

// The third axis that a query is reshaped to, (0, 0, heads, width).
std::size_t heads_of(const ov::Node& query) {
    for (const Node& reshape : takers<op::Reshape>(query)) {
        const auto shape = constant_of(reshape->get_input_node_shared_ptr(1));
        if (shape && ov::shape_size(shape->get_shape()) == 4)
            return static_cast<std::size_t>(std::max<std::int64_t>(0, shape->cast_vector<std::int64_t>()[2]));
    }
    return 0;
}

class Reader {
  public:
    explicit Reader(const ov::Model& model) {
        const auto nodes = model.get_ops();
        for (const Node& node : nodes)
            if (const auto found = ov::as_type_ptr<op::Constant>(node)) keep(*found);
        for (const Node& node : nodes)
            if (ov::is_type<op::Add>(node)) read_linear(*node);
    }

    std::optional<ItemFusion> result() const {
        try {
            return ItemFusion(arrays_, heads_);
        } catch (const std::invalid_argument&) {
            return std::nullopt;
        }
    }

  private:
    void keep(const op::Constant& found) {
        const std::string name = name_of(found);
        if (ends_with(name, ".bias") || ends_with(name, ".weight") || name == "modality_embedding")
            arrays_[name] = array(found);
    }

    // The weights of a linear layer, of the Add of its bias, and what else is found by its place.
    void read_linear(const ov::Node& add) {
        const auto [first, second] = sources(add);
        for (const auto& [product, bias] : {std::pair(first, second), std::pair(second, first)}) {
            const auto matmul = ov::as_type_ptr<op::MatMul>(product);
            if (!matmul || !ends_with(name_of(*bias), ".bias")) continue;
            const auto weights = constant_of(matmul->get_input_node_shared_ptr(1));
            if (!weights) continue;
            const std::string layer = without(name_of(*bias), ".bias");
            arrays_[layer + ".weight"] = array(*weights, matmul->get_transpose_b());
            if (layer == FIRST_QUERY) heads_ = heads_of(add);
            if (ends_with(layer, GATE)) read_indicated(add, without(layer, "linear") + "present");
        }
    }

    // The vector that the indicator multiplies before it is added to `gate` (eq. 3).
    void read_indicated(const ov::Node& gate, const std::string& name) {
        for (const Node& add : takers<op::Add>(gate))
            for (const Node& product : sources(*add))
                for (std::size_t i = 0; ov::is_type<op::Multiply>(product) && i < 2; ++i)
                    if (const auto found = constant_of(product->get_input_node_shared_ptr(i))) {
                        arrays_[name] = array(*found);
                        arrays_[name].rows = 1;
                        arrays_[name].columns = arrays_[name].values.size();
                    }
    }

    NamedArrays arrays_;
    std::size_t heads_ = 0;
};

}  // namespace

std::optional<ItemFusion> item_fusion(const std::shared_ptr<ov::Model>& model) {
    return Reader(*model).result();
}

}  // namespace uniecs
