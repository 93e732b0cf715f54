// The recipe of a bundle's int8 variant: where int8 arithmetic goes, and over which ranges
// (docs/bundle-format.md).
#pragma once

#include <map>
#include <string>
#include <vector>

namespace uniecs {

// A tensor (..., K) and the matrix products, by name, that read it in int8. Channel k of it is multiplied by
// scale[k], row k of their weights divided by it; the scaled tensor takes 256 levels from `low` to `high`.
struct QuantizedInput {
    std::vector<std::string> matmuls;
    float low, high;
    std::vector<float> scale;
};

using Int8Recipe = std::map<std::string, std::vector<QuantizedInput>>;  // by graph

// Throws BundleError for a text that is no recipe, or one of another model.
Int8Recipe parse_int8_recipe(const std::string& text, const std::string& model_id);

}  // namespace uniecs
