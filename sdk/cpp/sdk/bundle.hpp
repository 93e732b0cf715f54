// A bundle folder (docs/bundle-format.md), verified.
#pragma once

#include <cstddef>
#include <string>

#include "../src/resize.hpp"
#include "backend.hpp"

namespace uniecs {

struct Bundle {
    std::string folder;  // an absolute path
    std::string model_id, tokenizer_json;
    ImagePreprocessing preprocessing;
    std::string int8_json;  // of its int8 variant; empty: it has none
    std::size_t max_tokens = 0;
    std::size_t embed_dim = 0;     // the width of what its graphs give
    std::size_t image_tokens = 0;  // 0: the manifest does not tell
    Graphs graphs;                 // the bytes that were verified
};

// Throws BundleError for a folder that is missing, cut off, altered or of a newer format.
Bundle open_bundle(const std::string& folder);

}  // namespace uniecs
