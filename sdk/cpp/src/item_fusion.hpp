// The fusion graph (eq. 2-6) for one product or query, on one thread of the CPU: a graph of so many small
// steps keeps an engine busy with itself. Float32 throughout.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "named_arrays.hpp"

namespace uniecs {

// (count, embed_dim), of a text without its padding; none: the modality is absent.
struct TokenRows {
    const float* values = nullptr;
    std::size_t count = 0;
};

class ItemFusion {
  public:
    // Of all items of a batch, up to which they are sooner fused here, one by one, than by OpenVINO on two
    // threads.
    static constexpr std::size_t MAX_TOKENS = 200;

    // Arrays have the trainer's names (GatedFusion), with the columns of eq. 3's indicator times its vector
    // as gate.present, and those of the tokens and of what they attend to as gate.linear.weight.
    //
    // Takes a gated fusion of one gated layer, on a CPU with AVX2 or AVX-512 (or the `instructions` of the
    // two that are named). Throws std::invalid_argument for any other.
    ItemFusion(const NamedArrays& arrays, std::size_t heads, const std::string& instructions = "");
    ItemFusion(ItemFusion&&) noexcept;
    ItemFusion& operator=(ItemFusion&&) noexcept;
    ~ItemFusion();

    std::size_t embed_dim() const;

    // A unit vector (embed_dim); thread-safe. Throws std::invalid_argument if both are absent.
    void embed(const TokenRows& image, const TokenRows& text, float* embedding) const;

  private:
    struct Network;
    std::unique_ptr<const Network> network_;
};

}  // namespace uniecs
