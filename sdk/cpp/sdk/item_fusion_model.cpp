#include "item_fusion_model.hpp"

#include <algorithm>
#include <array>
#include <openvino/opsets/opset8.hpp>
#include <stdexcept>
#include <utility>

#include "graph_arrays.hpp"
#include "openvino_int8.hpp"

namespace uniecs {
namespace {

namespace op = ov::opset8;

const std::string FIRST_QUERY = "image_sides.0.cross_attention.q", GATE = ".gate.linear";

class Reader {
  public:
    explicit Reader(const ov::Model& model) {
        const auto nodes = model.get_ops();
        for (const Node& node : nodes)
            if (const auto found = ov::as_type_ptr<op::Constant>(node)) keep(*found);
        for (const Node& node : nodes)
            if (ov::is_type<op::Add>(node)) read_linear(*node);
    }

    std::optional<ItemFusion> result(std::shared_ptr<Crew> crew) const {
        try {
            return ItemFusion(arrays_, heads_, std::move(crew));
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
        const auto found = linear_of(add);
        if (!found) return;
        const std::string& layer = found->layer;
        arrays_[layer + ".weight"] = found->weights();
        if (layer == FIRST_QUERY)
            heads_ = static_cast<std::size_t>(std::max<std::int64_t>(0, split_of(add).first));
        if (ends_with(layer, GATE)) read_indicated(add, without(layer, "linear") + "present");
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

std::optional<ItemFusion> item_fusion(const std::shared_ptr<ov::Model>& model, std::shared_ptr<Crew> crew) {
    return Reader(*model).result(std::move(crew));
}

}  // namespace uniecs
