#include "bert_encoder_model.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>

#include "graph_arrays.hpp"

namespace uniecs {
namespace {

namespace op = ov::opset8;

const std::string FIRST_QUERY = "backbone.encoder.layer.0.attention.self.query";

// How many of each kind a layer has; and the projection's product and the embeddings' LayerNorm beside them.
const std::map<std::string, std::size_t> FOR_EACH_LAYER{
    {"Softmax", 1}, {"MatMul", 8}, {"Erf", 1}, {"Divide", 1}, {"MVN", 2}};
const std::map<std::string, std::size_t> ONCE_MORE{{"MatMul", 1}, {"MVN", 1}};
const std::set<std::string> BESIDE{"Parameter", "Constant",  "Convert", "Result",     "ShapeOf",
                                   "Range",     "Gather",    "Slice",   "Concat",     "GatherElements",
                                   "Unsqueeze", "Broadcast", "Equal",   "LogicalNot", "Select",
                                   "Add",       "Multiply",  "Reshape", "Transpose"};

bool is_bert(std::map<std::string, std::size_t> found) {
    const std::size_t layers = found["Softmax"];
    for (const auto& [kind, count] : found) {
        const auto each = FOR_EACH_LAYER.find(kind), more = ONCE_MORE.find(kind);
        if (each == FOR_EACH_LAYER.end()
                ? !BESIDE.count(kind)
                : count != each->second * layers + (more == ONCE_MORE.end() ? 0 : more->second))
            return false;
    }
    return std::all_of(FOR_EACH_LAYER.begin(), FOR_EACH_LAYER.end(),
                       [&](const auto& each) { return found.count(each.first); });
}

}  // namespace

std::optional<BertEncoder> bert_encoder(const std::shared_ptr<ov::Model>& model, std::shared_ptr<Crew> crew) {
    std::map<std::string, std::size_t> kinds;
    std::set<float> epsilons;
    std::map<std::string, std::shared_ptr<op::Constant>> named;
    std::map<std::string, LinearNode> layers;
    std::int64_t width = 0;
    for (const Node& node : model->get_ops()) {
        ++kinds[node->get_type_name()];
        if (const auto norm = ov::as_type_ptr<op::MVN>(node)) epsilons.insert(norm->get_eps());
        if (const auto found = ov::as_type_ptr<op::Constant>(node)) named[name_of(*found)] = found;
        if (const auto found = linear_of(*node)) {
            layers[found->layer + ".weight"] = *found;
            if (found->layer == FIRST_QUERY) width = split_of(*node).second;
        }
    }
    if (!is_bert(kinds) || epsilons.size() != 1) return std::nullopt;
    const auto find = [&](const std::string& name) -> std::optional<NamedArray> {
        // One by one: in float32 all take twice the room.
        if (const auto layer = layers.find(name); layer != layers.end()) return layer->second.weights();
        const auto found = named.find(name);
        return found == named.end() ? std::nullopt : std::optional(array(*found->second));
    };
    try {
        return BertEncoder(find, static_cast<std::size_t>(std::max<std::int64_t>(0, width)),
                           *epsilons.begin(), std::move(crew));
    } catch (const std::invalid_argument&) {
        return std::nullopt;
    }
}

}  // namespace uniecs
