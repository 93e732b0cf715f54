#include "int8_recipe.hpp"

#include <cmath>

#include "../src/json.hpp"
#include "uniecs/errors.hpp"

namespace uniecs {
namespace {

constexpr const char* FORMAT = "uniecs-int8";
constexpr std::int64_t FORMAT_VERSION = 1;

float finite(const json::Value& value) {
    const auto number = static_cast<float>(value.number());
    if (!std::isfinite(number)) throw BundleError("the int8 recipe has a number that is not finite");
    return number;
}

QuantizedInput quantized_input(const json::Object& read) {
    QuantizedInput input{{}, finite(read.at("low")), finite(read.at("high")), {}};
    for (const json::Value& name : read.at("matmuls").array()) input.matmuls.push_back(name.string());
    bool good = !input.matmuls.empty() && input.low < input.high && input.low <= 0 && 0 <= input.high;
    for (const json::Value& value : read.at("scale").array()) {
        input.scale.push_back(finite(value));
        good = good && input.scale.back() > 0;
    }
    if (!good || input.scale.empty()) throw BundleError("the int8 recipe has a bad range or scale");
    return input;
}

}  // namespace

Int8Recipe parse_int8_recipe(const std::string& text, const std::string& model_id) {
    try {
        const json::Value parsed = json::parse(text);
        const json::Object& read = parsed.object();
        if (read.at("format").string() != FORMAT || read.at("format_version").integer() != FORMAT_VERSION)
            throw BundleError(std::string("the int8 recipe is not of the format ") + FORMAT + " 1");
        if (read.at("model_id").string() != model_id)
            throw BundleError("the int8 recipe is of model " + read.at("model_id").string() +
                              ", the bundle is " + model_id);
        Int8Recipe recipe;
        for (const auto& [graph, inputs] : read.at("graphs").object()) {
            if (graph != "image_encoder" && graph != "text_encoder" && graph != "fusion")
                throw BundleError("the int8 recipe has the unknown graph '" + graph + "'");
            for (const json::Value& input : inputs.array())
                recipe[graph].push_back(quantized_input(input.object()));
        }
        return recipe;
    } catch (const json::Error& error) {
        throw BundleError(std::string("the int8 recipe is not valid: ") + error.what());
    }
}

}  // namespace uniecs
