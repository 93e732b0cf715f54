#include "item_fusion.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "network_parts.hpp"

namespace uniecs {
namespace {

constexpr float EPSILON = 1e-5f;  // of LayerNorm

// A pre-LN Transformer block (eq. 5); queries, keys and values in one product.
struct Block {
    Norm norm1, norm2;
    Linear qkv, out, widen, narrow;
};

// Eq. 2-5 for one modality. The other one absent is one zero token, whose value is what any of our tokens
// gets from it; this one absent is one zero token, which asks any of the other's tokens the same question.
struct Side {
    Linear q, kv, out;
    Norm norm;
    Matrix gate_own, gate_attended;  // eq. 3 in columns
    Floats gate_bias;                // of an absent modality
    Floats gate_bias_present;        // of a present one
    Floats attended_absent;          // eq. 2 where the other is absent,
    Floats gate_bias_alone;          // and the bias to which its part of eq. 3 then comes down
    Matrix question;                 // (D, heads): the other's tokens to the scores of our zero token
    Block block;
};

// With what most arrays of a fusion are: of its width.
class FusionSource : public Source {
  public:
    FusionSource(const NamedArrays& arrays, std::size_t dim, std::size_t hidden)
        : Source([&arrays](const std::string& name) {
              const auto found = arrays.find(name);
              return found == arrays.end() ? std::nullopt : std::optional(found->second);
          }),
          dim_(dim),
          hidden_(hidden) {}

    Floats vector(const std::string& name) const { return matrix(name, 1, dim_); }

    Norm norm(const std::string& name) const { return Source::norm(name, dim_); }

    Linear square(const std::string& name) const { return linear(name, dim_, dim_); }

    Block block(const std::string& name) const {
        const std::string attention = name + ".attention";
        const Floats q = matrix(attention + ".q.weight", dim_, dim_),
                     kv = matrix(attention + ".kv.weight", dim_, 2 * dim_);
        Floats joined, bias = vector(attention + ".q.bias");
        for (std::size_t row = 0; row < dim_; ++row) {
            joined.insert(joined.end(), q.data() + row * dim_, q.data() + (row + 1) * dim_);
            joined.insert(joined.end(), kv.data() + row * 2 * dim_, kv.data() + (row + 1) * 2 * dim_);
        }
        const Floats kv_bias = matrix(attention + ".kv.bias", 1, 2 * dim_);
        bias.insert(bias.end(), kv_bias.begin(), kv_bias.end());
        return {norm(name + ".norm1"),
                norm(name + ".norm2"),
                {Matrix(joined.data(), dim_, 3 * dim_), std::move(bias)},
                square(attention + ".out"),
                linear(name + ".mlp.0", dim_, hidden_),
                linear(name + ".mlp.2", hidden_, dim_)};
    }

  private:
    std::size_t dim_, hidden_;
};

std::size_t columns(const NamedArrays& arrays, const std::string& name) {
    const auto found = arrays.find(name);
    if (found == arrays.end()) throw std::invalid_argument("the fusion has no " + name);
    return found->second.columns;
}

Floats sum(const Floats& a, const Floats& b) {
    Floats made(a.size());
    std::transform(a.begin(), a.end(), b.begin(), made.begin(), std::plus<float>());
    return made;
}

}  // namespace

// `room` is for what a function computes on the way; see room_for.
struct ItemFusion::Network {
    const RowKernels& run;
    std::size_t dim, heads, hidden;
    std::array<Side, 2> sides;  // image, text
    Floats modality;            // (2, D): the learned vectors of eq. 6
    std::vector<Block> blocks;
    Norm norm;
    Linear head;
    mutable Rooms rooms;

    Network(const NamedArrays& arrays, std::size_t heads, const RowKernels& kernels);
    Side side(const FusionSource& source, const std::string& name) const;

    void normed(const Norm& by, const float* x, std::size_t rows, float* out) const {
        run.layer_norm(x, rows, dim, by.gain.data(), by.bias.data(), EPSILON, out);
    }
    void product(const float* x, std::size_t rows, const Columns& w, const float* bias, float* out) const {
        run.product(x, rows, w, bias, out, w.count);
    }
    void product(const Linear& by, const float* x, std::size_t rows, float* out) const {
        product(x, rows, by.weight.all(), by.bias.data(), out);
    }
    // The values alone, of a product whose last D columns they are.
    void value(const Linear& by, const float* x, float* out) const {
        const std::size_t first = by.bias.size() - dim;
        product(x, 1, by.weight.columns(first, dim), by.bias.data() + first, out);
    }
    void attend(const Block& block, float* x, std::size_t rows, float* room) const;
    float* widened(const Block& block, const float* x, std::size_t rows, float* room) const;
    void feed(const Block& block, float* x, std::size_t rows, float* room) const;
    void feed_and_mean(const Block& block, float* x, std::size_t rows, float* room) const;
    void present(const Side& side, const TokenRows& tokens, const TokenRows& other, float* room,
                 float* out) const;
    void attend_to(const Side& side, const TokenRows& tokens, const TokenRows& other, float* attended,
                   float* room) const;
    void absent(const Side& side, const TokenRows& other, float* room, float* out) const;
    void unite(float* pair, float* room, float* embedding) const;

    std::size_t room_for(std::size_t rows, std::size_t others) const {
        return rows * (6 * dim + hidden) + others * (2 * dim + PANEL) + (heads + 4) * dim +
               attention_scratch(rows, std::max(rows, others), dim / heads);
    }
};

ItemFusion::Network::Network(const NamedArrays& arrays, std::size_t heads_, const RowKernels& kernels)
    : run(kernels),
      dim(uniecs::columns(arrays, "head.bias")),
      heads(heads_),
      hidden(uniecs::columns(arrays, "image_sides.0.block.mlp.0.bias")) {
    if (!heads || heads > PANEL || dim % heads || dim / heads % PANEL || hidden % PANEL)
        throw std::invalid_argument("heads and the feed-forward are not multiples of " +
                                    std::to_string(PANEL) + " wide");
    if (arrays.count("image_sides.1.norm.weight"))
        throw std::invalid_argument("the fusion has several gated layers");
    const FusionSource source(arrays, dim, hidden);
    sides = {side(source, "image_sides.0"), side(source, "text_sides.0")};
    modality = source.matrix("modality_embedding", 2, dim);
    for (std::size_t i = 0; arrays.count("blocks." + std::to_string(i) + ".norm1.weight"); ++i)
        blocks.push_back(source.block("blocks." + std::to_string(i)));
    if (blocks.empty()) throw std::invalid_argument("the fusion has no blocks");
    norm = source.norm("norm");
    head = source.square("head");
}

Side ItemFusion::Network::side(const FusionSource& source, const std::string& name) const {
    const std::string cross = name + ".cross_attention";
    Side made{source.square(cross + ".q"),
              source.linear(cross + ".kv", dim, 2 * dim),
              source.square(cross + ".out"),
              source.norm(name + ".norm"),
              Matrix(),
              Matrix(),
              Floats(),
              Floats(),
              Floats(dim),
              Floats(dim),
              Matrix(),
              source.block(name + ".block")};
    const Floats gate = source.matrix(name + ".gate.linear.weight", 2 * dim, dim);
    made.gate_own = Matrix(gate.data(), dim, dim);
    made.gate_attended = Matrix(gate.data() + dim * dim, dim, dim);
    made.gate_bias = source.vector(name + ".gate.linear.bias");
    made.gate_bias_present = sum(made.gate_bias, source.vector(name + ".gate.present"));
    // The value of a zero token is its bias.
    product(made.out, made.kv.bias.data() + dim, 1, made.attended_absent.data());
    normed(made.norm, made.attended_absent.data(), 1, made.attended_absent.data());
    product(made.attended_absent.data(), 1, made.gate_attended.all(), made.gate_bias_present.data(),
            made.gate_bias_alone.data());
    // The query q of a zero token is its bias; q . (Wk x + bk) is (Wk' q) . x, but for what all keys share.
    const Floats kv = source.matrix(cross + ".kv.weight", dim, 2 * dim);
    const std::size_t width = dim / heads;
    Floats question(dim * heads);
    for (std::size_t row = 0; row < dim; ++row)
        for (std::size_t i = 0; i < dim; ++i)
            question[row * heads + i / width] += made.q.bias[i] * kv[row * 2 * dim + i];
    for (float& each : question) each /= std::sqrt(static_cast<float>(width));
    made.question = Matrix(question.data(), dim, heads);
    return made;
}

// x += attention(norm(x)).
void ItemFusion::Network::attend(const Block& block, float* x, std::size_t rows, float* room) const {
    float *qkv = room, *attended = qkv + 3 * rows * dim, *rest = attended + rows * dim;
    normed(block.norm1, x, rows, attended);
    product(block.qkv, attended, rows, qkv);
    run.attention({qkv, 3 * dim, rows}, {qkv + dim, qkv + 2 * dim, 3 * dim, rows}, heads, dim / heads, rest,
                  attended, dim);
    product(block.out, attended, rows, qkv);
    run.add(qkv, rows * dim, x);
}

// The feed-forward network but for its last product.
float* ItemFusion::Network::widened(const Block& block, const float* x, std::size_t rows, float* room) const {
    float* wide = room + rows * dim;
    normed(block.norm2, x, rows, room);
    product(block.widen, room, rows, wide);
    run.gelu(wide, rows * hidden);
    return wide;
}

// x += feed-forward(norm(x)).
void ItemFusion::Network::feed(const Block& block, float* x, std::size_t rows, float* room) const {
    float* wide = widened(block, x, rows, room);
    product(block.narrow, wide, rows, room);
    run.add(room, rows * dim, x);
}

// The mean of the rows that `feed` gives, in x's first: the mean goes before the last product, as that is
// linear.
void ItemFusion::Network::feed_and_mean(const Block& block, float* x, std::size_t rows, float* room) const {
    float* wide = widened(block, x, rows, room);
    run.mean(wide, rows, hidden, wide);
    run.mean(x, rows, dim, x);
    product(block.narrow, wide, 1, room);
    run.add(room, dim, x);
}

// Eq. 2-5 and the mean over the tokens, for a modality that is present.
void ItemFusion::Network::present(const Side& side, const TokenRows& tokens, const TokenRows& other,
                                  float* room, float* out) const {
    const std::size_t rows = tokens.count;
    float *x = room, *gate = x + rows * dim, *rest = gate + rows * dim;
    if (other.count) {
        attend_to(side, tokens, other, x, gate);
        product(x, rows, side.gate_attended.all(), side.gate_bias_present.data(), gate);
        product(tokens.values, rows, side.gate_own.all(), nullptr, rest);
        run.add(rest, rows * dim, gate);
        run.blend(tokens.values, gate, rows, dim, x, dim, x);
    } else {
        product(tokens.values, rows, side.gate_own.all(), side.gate_bias_alone.data(), gate);
        run.blend(tokens.values, gate, rows, dim, side.attended_absent.data(), 0, x);
    }
    attend(side.block, x, rows, gate);
    feed_and_mean(side.block, x, rows, gate);
    std::copy_n(x, dim, out);
}

// Eq. 2: what our tokens get from the other's.
void ItemFusion::Network::attend_to(const Side& side, const TokenRows& tokens, const TokenRows& other,
                                    float* attended, float* room) const {
    const std::size_t rows = tokens.count;
    float *q = room, *kv = q + rows * dim, *rest = kv + other.count * 2 * dim;
    product(side.q, tokens.values, rows, q);
    product(side.kv, other.values, other.count, kv);
    run.attention({q, dim, rows}, {kv, kv + dim, 2 * dim, other.count}, heads, dim / heads, rest, attended,
                  dim);
    product(side.out, attended, rows, q);
    normed(side.norm, q, rows, attended);
}

// The same for a modality that is absent: one zero token, whose self-attention is its value.
void ItemFusion::Network::absent(const Side& side, const TokenRows& other, float* room, float* out) const {
    const std::size_t width = dim / heads;
    float *x = room, *y = x + dim, *pooled = y + dim, *scores = pooled + heads * dim;
    product(other.values, other.count, side.question.all(), nullptr, scores);
    run.pool(other.values, other.count, dim, scores, heads, pooled);
    for (std::size_t first = 0; first < dim; first += width)  // of each head
        product(pooled + first / width * dim, 1, side.kv.weight.columns(dim + first, width),
                side.kv.bias.data() + dim + first, x + first);
    product(side.out, x, 1, y);
    normed(side.norm, y, 1, x);
    product(x, 1, side.gate_attended.all(), side.gate_bias.data(), y);
    std::fill_n(out, dim, 0.0f);
    run.blend(out, y, 1, dim, x, dim, out);
    normed(side.block.norm1, out, 1, x);
    value(side.block.qkv, x, y);
    product(side.block.out, y, 1, x);
    run.add(x, dim, out);
    feed(side.block, out, 1, room);
}

// Eq. 6: both sides (2, D), their modalities marked, to the embedding.
void ItemFusion::Network::unite(float* pair, float* room, float* embedding) const {
    for (const Block& block : blocks) {
        attend(block, pair, 2, room);
        if (&block == &blocks.back())
            feed_and_mean(block, pair, 2, room);
        else
            feed(block, pair, 2, room);
    }
    normed(norm, pair, 1, pair);
    product(head, pair, 1, room);
    double squares = 1e-24;
    for (std::size_t i = 0; i < dim; ++i) squares += static_cast<double>(room[i]) * room[i];
    for (std::size_t i = 0; i < dim; ++i) embedding[i] = static_cast<float>(room[i] / std::sqrt(squares));
}

ItemFusion::ItemFusion(const NamedArrays& arrays, std::size_t heads, const std::string& instructions) {
    const RowKernels* kernels = row_kernels(instructions);
    if (!kernels) throw std::invalid_argument("this CPU has no AVX2");
    network_ = std::make_unique<const Network>(arrays, heads, *kernels);
}

ItemFusion::ItemFusion(ItemFusion&&) noexcept = default;
ItemFusion& ItemFusion::operator=(ItemFusion&&) noexcept = default;
ItemFusion::~ItemFusion() = default;

std::size_t ItemFusion::embed_dim() const { return network_->dim; }

void ItemFusion::embed(const TokenRows& image, const TokenRows& text, float* embedding) const {
    if (!image.count && !text.count) throw std::invalid_argument("an item has neither image nor text tokens");
    const Network& network = *network_;
    const std::size_t dim = network.dim, most = std::max<std::size_t>(2, std::max(image.count, text.count));
    Rooms::Lent lent(network.rooms, 2 * dim + network.room_for(most, most));
    float *pair = lent.data(), *room = pair + 2 * dim;
    const TokenRows tokens[] = {image, text};
    for (std::size_t i = 0; i < 2; ++i) {
        float* out = pair + i * dim;
        if (tokens[i].count) {
            network.present(network.sides[i], tokens[i], tokens[1 - i], room, out);
            network.run.add(network.modality.data() + i * dim, dim, out);
        } else {
            network.absent(network.sides[i], tokens[1 - i], room, out);
        }
    }
    network.unite(pair, room, embedding);
}

}  // namespace uniecs
