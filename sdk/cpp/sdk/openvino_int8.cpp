#include "openvino_int8.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <openvino/opsets/opset8.hpp>

#include "uniecs/errors.hpp"

namespace uniecs {
namespace {

namespace op = ov::opset8;

constexpr std::size_t INPUT_LEVELS = 256, WEIGHT_LEVELS = 255;

std::shared_ptr<ov::Node> constant(const ov::Shape& shape, const std::vector<float>& values) {
    return op::Constant::create(ov::element::f32, shape, values);
}

ov::Output<ov::Node> fake_quantize(const ov::Output<ov::Node>& of, const std::shared_ptr<ov::Node>& low,
                                   const std::shared_ptr<ov::Node>& high, std::size_t levels) {
    return std::make_shared<op::FakeQuantize>(of, low, high, low, high, levels)->output(0);
}

// The weights (K, N) of a product as float32, however they are stored; null if they are not constant.
std::shared_ptr<op::Constant> constant_weights(const op::MatMul& product) {
    auto found = constant_of(product.get_input_node_shared_ptr(1));
    const bool plain =
        found && found->get_shape().size() == 2 && !product.get_transpose_a() && !product.get_transpose_b();
    return plain ? found : nullptr;
}

// The weights with row k divided by scale[k], in int8's levels.
ov::Output<ov::Node> narrow_weights(const op::Constant& stored, const std::vector<float>& scale) {
    const std::size_t rows = stored.get_shape()[0], columns = stored.get_shape()[1];
    std::vector<float> weights = stored.cast_vector<float>();
    std::vector<float> high(columns, std::numeric_limits<float>::min()), low(columns);
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t column = 0; column < columns; ++column) {
            float& weight = weights[row * columns + column];
            weight /= scale[row];
            high[column] = std::max(high[column], std::fabs(weight));
        }
    std::transform(high.begin(), high.end(), low.begin(), [](float bound) { return -bound; });
    return fake_quantize(constant({rows, columns}, weights), constant({1, columns}, low),
                         constant({1, columns}, high), WEIGHT_LEVELS);
}

[[noreturn]] void misfit(const std::string& why) {
    throw BundleError("the int8 recipe does not fit the graph: " + why);
}

}  // namespace

std::shared_ptr<op::Constant> constant_of(std::shared_ptr<ov::Node> node) {
    if (ov::is_type<op::Convert>(node)) node = node->get_input_node_shared_ptr(0);
    return ov::as_type_ptr<op::Constant>(node);
}

void quantize(const std::shared_ptr<ov::Model>& model, const std::vector<QuantizedInput>& inputs) {
    std::map<std::string, std::shared_ptr<op::MatMul>> products;
    for (const std::shared_ptr<ov::Node>& node : model->get_ops())
        if (auto product = ov::as_type_ptr<op::MatMul>(node)) products[node->get_friendly_name()] = product;
    for (const QuantizedInput& input : inputs) {
        std::vector<std::shared_ptr<op::MatMul>> reading;
        for (const std::string& name : input.matmuls) {
            if (!products.count(name)) misfit("there is no matrix product '" + name + "'");
            reading.push_back(products[name]);
        }
        const ov::Output<ov::Node> source = reading.front()->input_value(0);
        const auto scaled =
            std::make_shared<op::Multiply>(source, constant({input.scale.size()}, input.scale));
        const ov::Output<ov::Node> narrow =
            fake_quantize(scaled, constant({}, {input.low}), constant({}, {input.high}), INPUT_LEVELS);
        for (const std::shared_ptr<op::MatMul>& product : reading) {
            const auto weights = constant_weights(*product);
            if (!weights || weights->get_shape()[0] != input.scale.size() ||
                product->input_value(0) != source)
                misfit("'" + product->get_friendly_name() + "' is another kind of matrix product");
            product->input(0).replace_source_output(narrow);
            product->input(1).replace_source_output(narrow_weights(*weights, input.scale));
        }
    }
    if (!inputs.empty()) model->validate_nodes_and_infer_types();
}

}  // namespace uniecs
