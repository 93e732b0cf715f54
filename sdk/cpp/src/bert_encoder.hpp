// The text encoder (a BERT, and the projection of eq. 1) for a few texts, in float32 on the CPU: their
// weights are read once for all of their tokens, in float16 where an engine has them as float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "named_arrays.hpp"

namespace uniecs {

class Crew;

class BertEncoder {
  public:
    // Arrays have the trainer's names (TextEncoder); a word table of int8 ends in .int8, its scales in
    // .scale.
    //
    // Takes a BERT with gelu, on a CPU with AVX2 or AVX-512 (or the `instructions` of the two that are
    // named). Heads are `width` wide, `epsilon` is LayerNorm's. Throws std::invalid_argument for any other.
    BertEncoder(const FindArray& find, std::size_t width, float epsilon, std::shared_ptr<Crew> crew,
                const std::string& instructions = "");
    BertEncoder(BertEncoder&&) noexcept;
    BertEncoder& operator=(BertEncoder&&) noexcept;
    ~BertEncoder();

    std::size_t embed_dim() const;

    // Of all texts of a batch, up to which they are sooner encoded here than by OpenVINO.
    std::size_t max_tokens() const;

    // Tokens (texts, length, embed_dim) of ids whose mask is not 0, both (texts, length); zeros for the
    // others. False, with nothing done, for more than max_tokens, and for what the graph has to say something
    // about: a text without a token, an unknown id, a length beyond the positions. Thread-safe.
    bool encode(const std::int64_t* ids, const std::int64_t* mask, std::size_t texts, std::size_t length,
                std::vector<float>& tokens) const;

  private:
    struct Network;
    std::unique_ptr<const Network> network_;
    std::shared_ptr<Crew> crew_;
};

}  // namespace uniecs
