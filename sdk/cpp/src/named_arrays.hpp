// The weights of a network by name.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace uniecs {

// Float32; a vector has one row, a matrix is (in, out).
struct NamedArray {
    std::size_t rows = 0, columns = 0;
    std::vector<float> values;
};

using NamedArrays = std::map<std::string, NamedArray>;

// The array of a name, or none.
using FindArray = std::function<std::optional<NamedArray>(const std::string&)>;

}  // namespace uniecs
