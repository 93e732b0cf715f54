#include "token_padding.hpp"

#include <algorithm>
#include <openvino/opsets/opset8.hpp>
#include <set>

#include "openvino_int8.hpp"

namespace uniecs {
namespace {

namespace op = ov::opset8;
using Node = std::shared_ptr<ov::Node>;

constexpr std::int64_t MULTIPLE = 8;
constexpr double MOST_SPARE = 0.03;  // share of the tokens
// Operations that do to each token the same, and to attention's scores; with constants that know no number of
// tokens.
const std::set<std::string> EACH_ALIKE{"Add",      "Convert", "Divide", "Erf",     "Gelu",
                                       "Multiply", "MVN",     "Power",  "Sigmoid", "Subtract",
                                       "Swish",    "Tanh",    "MatMul", "Softmax", "Result"};

std::vector<Node> takers(const Node& node) {
    std::vector<Node> found;
    for (const auto& output : node->outputs())
        for (const auto& input : output.get_target_inputs())
            found.push_back(input.get_node()->shared_from_this());
    return found;
}

// The Add of the positions to the class token and the patches, (batch, tokens, width); null if there is none.
Node tokens_made(const ov::Model& model, std::int64_t tokens) {
    for (const Node& node : model.get_ordered_ops()) {
        if (!ov::is_type<op::Add>(node) || !ov::is_type<op::Concat>(node->get_input_node_shared_ptr(0)))
            continue;
        const ov::PartialShape shape = node->get_output_partial_shape(0);
        if (shape.size() == 3 && shape[1].is_static() && shape[1].get_length() == tokens) return node;
    }
    return nullptr;
}

// All that is computed from `start`.
std::vector<Node> behind(const Node& start) {
    std::vector<Node> found, left = takers(start);
    std::set<ov::Node*> seen;
    while (!left.empty()) {
        const Node node = left.back();
        left.pop_back();
        if (!seen.insert(node.get()).second) continue;
        found.push_back(node);
        for (const Node& each : takers(node)) left.push_back(each);
    }
    return found;
}

std::shared_ptr<op::Constant> constant_at(const Node& node, std::size_t port) {
    return constant_of(node->get_input_node_shared_ptr(port));
}

// Whether a node computes with any number of tokens, once a Reshape takes that from its input.
bool indifferent(const Node& node, std::int64_t tokens) {
    const std::string kind = node->get_type_name();
    if (kind == "Reshape") {
        const auto constant = constant_at(node, 1);
        if (!constant) return false;
        const auto pattern = constant->cast_vector<std::int64_t>();
        return (pattern.size() == 3 || pattern.size() == 4) && (pattern[0] == 0 || pattern[0] == -1) &&
               (pattern[1] == 0 || pattern[1] == tokens) &&
               std::all_of(pattern.begin() + 2, pattern.end(), [](std::int64_t each) { return each > 0; });
    }
    if (kind == "Transpose") return node->get_output_partial_shape(0).size() == 4;  // of heads
    for (std::size_t port = 0; port < node->get_input_size(); ++port)
        if (const auto constant = constant_at(node, port)) {
            const ov::Shape shape = constant->get_shape();
            if (std::count(shape.begin(), shape.end(), static_cast<std::size_t>(tokens))) return false;
        }
    return EACH_ALIKE.count(kind) > 0;
}

// The Reshapes into heads of all keys and values; none where attention is another than softmax(q k') v.
std::vector<Node> keys_and_values(const std::vector<Node>& nodes) {
    std::set<Node> products, expected;
    for (const Node& node : nodes) {
        if (ov::is_type<op::MatMul>(node) && !constant_at(node, 1)) products.insert(node);
        if (std::string(node->get_type_name()) != "Softmax") continue;
        expected.insert(node->get_input_node_shared_ptr(0));
        for (const Node& each : takers(node)) expected.insert(each);
    }
    if (products != expected) return {};
    std::vector<Node> found;
    for (const Node& product : products) {
        Node source = product->get_input_node_shared_ptr(1);
        while (ov::is_type<op::Transpose>(source)) source = source->get_input_node_shared_ptr(0);
        if (!ov::is_type<op::Reshape>(source)) return {};
        found.push_back(source);
    }
    return found;
}

Node integers(const std::vector<std::int64_t>& values) {
    return op::Constant::create(ov::element::i64, {values.size()}, values);
}

// Zeros behind the tokens of a photo that comes alone.
void append_spare(const ov::Model& model, const Node& start, std::int64_t spare) {
    const auto readers = start->output(0).get_target_inputs();
    const auto shape = std::make_shared<op::ShapeOf>(model.get_parameters().front());
    const auto batch = std::make_shared<op::Gather>(shape, integers({0}), integers({0}));
    const auto count = std::make_shared<op::Select>(std::make_shared<op::Equal>(batch, integers({1})),
                                                    integers({spare}), integers({0}));
    const Node width = integers({start->get_output_partial_shape(0)[2].get_length()});
    const auto zeros =
        std::make_shared<op::Broadcast>(op::Constant::create(ov::element::f32, {}, {0.0f}),
                                        std::make_shared<op::Concat>(ov::NodeVector{batch, count, width}, 0));
    const auto padded = std::make_shared<op::Concat>(ov::NodeVector{start, zeros}, 1);
    for (ov::Input<ov::Node> each : readers) each.replace_source_output(padded);
}

// The first `tokens` of (batch, at least so many, ...).
ov::Output<ov::Node> cut(const ov::Output<ov::Node>& of, std::int64_t tokens) {
    return std::make_shared<op::Slice>(of, integers({0}), integers({tokens}), integers({1}), integers({1}))
        ->output(0);
}

// Lets a Reshape take batch and length from its input.
void keep_length(const Node& reshape) {
    auto pattern = constant_at(reshape, 1)->cast_vector<std::int64_t>();
    pattern[0] = pattern[1] = 0;
    const auto made = std::make_shared<op::Reshape>(reshape->input_value(0), integers(pattern), true);
    made->set_friendly_name(reshape->get_friendly_name());
    reshape->output(0).replace(made);
}

}  // namespace

std::size_t pad_tokens(const std::shared_ptr<ov::Model>& model) {
    const ov::PartialShape shape = model->output(0).get_partial_shape();
    if (shape.rank().is_dynamic() || shape.size() != 3 || shape[1].is_dynamic()) return 0;
    const std::int64_t tokens = shape[1].get_length(), spare = (MULTIPLE - tokens % MULTIPLE) % MULTIPLE;
    const Node start = tokens_made(*model, tokens);
    if (!start || !spare || static_cast<double>(spare) > MOST_SPARE * static_cast<double>(tokens)) return 0;
    const std::vector<Node> nodes = behind(start), attended = keys_and_values(nodes);
    const bool known =
        std::all_of(nodes.begin(), nodes.end(), [&](const Node& each) { return indifferent(each, tokens); });
    if (attended.empty() || !known) return 0;

    append_spare(*model, start, spare);
    for (const Node& each : attended) each->input(0).replace_source_output(cut(each->input_value(0), tokens));
    for (const Node& each : nodes)
        if (ov::is_type<op::Reshape>(each)) keep_length(each);
    ov::Output<ov::Node> whole = model->get_results().front()->input_value(0);
    const auto names = whole.get_names();
    whole.set_names({});
    ov::Output<ov::Node> rest = cut(whole, tokens);
    rest.set_names(names);
    model->get_results().front()->input(0).replace_source_output(rest);
    model->validate_nodes_and_infer_types();
    return static_cast<std::size_t>(spare);
}

}  // namespace uniecs
