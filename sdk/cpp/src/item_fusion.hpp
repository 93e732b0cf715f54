// The fusion graph (eq. 2-6) on the CPU, item by item, as they all have their own numbers of tokens: a graph
// of so many small steps keeps an engine busy with itself. Float32 throughout.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "named_arrays.hpp"

namespace uniecs {

// (count, embed_dim), of a text without its padding; none: the modality is absent.
struct TokenRows {
    const float* values = nullptr;
    std::size_t count = 0;
};

class Crew;

class ItemFusion {
  public:
    // A product or query; one of the two at least is present.
    struct Item {
        TokenRows image, text;
    };

    // Of all items of a batch, up to which they are sooner fused here than by a graph in bf16; in float32 any
    // number is.
    static constexpr std::size_t FEW_TOKENS = 200;

    // Arrays have the trainer's names (GatedFusion), with the columns of eq. 3's indicator times its vector
    // as gate.present, and those of the tokens and of what they attend to as gate.linear.weight.
    //
    // Takes a gated fusion of one gated layer, on a CPU with AVX2 or AVX-512 (or the `instructions` of the
    // two that are named). Throws std::invalid_argument for any other.
    ItemFusion(const NamedArrays& arrays, std::size_t heads, std::shared_ptr<Crew> crew,
               const std::string& instructions = "");
    ItemFusion(ItemFusion&&) noexcept;
    ItemFusion& operator=(ItemFusion&&) noexcept;
    ~ItemFusion();

    std::size_t embed_dim() const;

    // Unit vectors (items, embed_dim), the same on any number of threads; thread-safe. Throws
    // std::invalid_argument for an item of nothing.
    void embed(const std::vector<Item>& items, float* embeddings) const;

  private:
    struct Network;
    class Pass;
    std::unique_ptr<const Network> network_;
    std::shared_ptr<Crew> crew_;
};

}  // namespace uniecs
