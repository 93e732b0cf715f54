#include "item_fusion.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <functional>
#include <stdexcept>

#include "network_parts.hpp"

namespace uniecs {
namespace {

constexpr float EPSILON = 1e-5f;  // of LayerNorm
constexpr std::size_t ROWS_AT_ONCE = 32;

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

    // What items of at most `rows` tokens of either modality need on the way, and attention on each thread.
    std::size_t room_for(std::size_t rows) const {
        return rows * (5 * dim + hidden + PANEL) + (heads + 6) * dim + hidden;
    }
    std::size_t scratch_for(std::size_t rows) const { return attention_scratch(rows, rows, dim / heads); }
};

// Items on their way through the network, each step of which some threads share. `room` is for what a
// function computes.
class ItemFusion::Pass {
  public:
    // `room` has room_for(rows) floats, and scratch_for(rows) for each thread.
    Pass(const Network& network, Steps& steps, std::size_t rows, float* room)
        : network_(network),
          run_(network.run),
          dim_(network.dim),
          steps_(steps),
          scratch_floats_(network.scratch_for(rows)),
          pair_(room),
          room_(room + 2 * dim_),
          scratch_(room + network.room_for(rows)) {}

    void embed(const Item& item, float* embedding) const;

  private:
    // Many rows are shared by the threads, few are not worth it.
    template <typename Work>
    void by_rows(std::size_t rows, const Work& work) const {
        if (rows <= ROWS_AT_ONCE) return work(0, rows);
        steps_.each((rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, [&](std::size_t part, std::size_t) {
            const std::size_t first = part * ROWS_AT_ONCE;
            work(first, std::min(ROWS_AT_ONCE, rows - first));
        });
    }
    void normed(const Norm& by, const float* x, std::size_t rows, float* out) const {
        by_rows(rows, [&](std::size_t first, std::size_t count) {
            run_.layer_norm(x + first * dim_, count, dim_, by.gain.data(), by.bias.data(), EPSILON,
                            out + first * dim_);
        });
    }
    void add(const float* x, std::size_t rows, float* out) const {
        by_rows(rows, [&](std::size_t first, std::size_t count) {
            run_.add(x + first * dim_, count * dim_, out + first * dim_);
        });
    }
    // Rows of `attended` are `stride` floats apart.
    void blend(const float* x, const float* logits, std::size_t rows, const float* attended,
               std::size_t stride, float* out) const {
        by_rows(rows, [&](std::size_t first, std::size_t count) {
            const std::size_t at = first * dim_;
            run_.blend(x + at, logits + at, count, dim_, attended + first * stride, stride, out + at);
        });
    }
    void product(const Matrix& by, std::size_t first, const float* bias, const float* x, std::size_t rows,
                 float* out) const {
        shared_product(steps_, run_, by, first, dim_, bias, x, rows, out, [](const Piece&) {});
    }
    void product(const Linear& by, const float* x, std::size_t rows, float* out) const {
        shared_product(steps_, run_, by, x, rows, out);
    }
    // The values alone, of a product whose last D columns they are.
    void value(const Linear& by, const float* x, float* out) const {
        const std::size_t first = by.bias.size() - dim_;
        product(by.weight, first, by.bias.data() + first, x, 1, out);
    }
    void attention(const Queries& queries, const KeysAndValues& others, float* out) const;
    void attend(const Block& block, float* x, std::size_t rows, float* room) const;
    float* widened(const Block& block, const float* x, std::size_t rows, float* room) const;
    void feed(const Block& block, float* x, std::size_t rows, float* room) const;
    void feed_and_mean(const Block& block, float* x, std::size_t rows, float* room) const;
    void present(const Side& side, const TokenRows& tokens, const TokenRows& other, float* out) const;
    void attend_to(const Side& side, const TokenRows& tokens, const TokenRows& other, float* attended,
                   float* room) const;
    void absent(const Side& side, const TokenRows& other, float* out) const;
    void unite(float* embedding) const;

    const Network& network_;
    const RowKernels& run_;
    const std::size_t dim_;
    Steps& steps_;
    const std::size_t scratch_floats_;
    float *const pair_, *const room_, *const scratch_;
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
    run.product(made.kv.bias.data() + dim, 1, made.out.weight.all(), made.out.bias.data(),
                made.attended_absent.data(), dim);
    run.layer_norm(made.attended_absent.data(), 1, dim, made.norm.gain.data(), made.norm.bias.data(), EPSILON,
                   made.attended_absent.data());
    run.product(made.attended_absent.data(), 1, made.gate_attended.all(), made.gate_bias_present.data(),
                made.gate_bias_alone.data(), dim);
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

void ItemFusion::Pass::attention(const Queries& queries, const KeysAndValues& others, float* out) const {
    const std::size_t width = dim_ / network_.heads;
    steps_.each(network_.heads, [&](std::size_t head, std::size_t thread) {
        const std::size_t first = head * width;
        run_.attention({queries.q + first, queries.stride, queries.rows},
                       {others.k + first, others.v + first, others.stride, others.rows}, 1, width,
                       scratch_ + thread * scratch_floats_, out + first, dim_);
    });
}

// x += attention(norm(x)).
void ItemFusion::Pass::attend(const Block& block, float* x, std::size_t rows, float* room) const {
    float *qkv = room, *attended = qkv + 3 * rows * dim_;
    normed(block.norm1, x, rows, attended);
    product(block.qkv, attended, rows, qkv);
    attention({qkv, 3 * dim_, rows}, {qkv + dim_, qkv + 2 * dim_, 3 * dim_, rows}, attended);
    product(block.out, attended, rows, qkv);
    add(qkv, rows, x);
}

// The feed-forward network but for its last product.
float* ItemFusion::Pass::widened(const Block& block, const float* x, std::size_t rows, float* room) const {
    float* wide = room + rows * dim_;
    normed(block.norm2, x, rows, room);
    shared_widening(steps_, run_, block.widen, room, rows, wide);
    return wide;
}

// x += feed-forward(norm(x)).
void ItemFusion::Pass::feed(const Block& block, float* x, std::size_t rows, float* room) const {
    const float* wide = widened(block, x, rows, room);
    product(block.narrow, wide, rows, room);
    add(room, rows, x);
}

// The mean of the rows that `feed` gives, in x's first: the mean goes before the last product, as that is
// linear.
void ItemFusion::Pass::feed_and_mean(const Block& block, float* x, std::size_t rows, float* room) const {
    float* wide = widened(block, x, rows, room);
    const std::size_t hidden = network_.hidden;
    steps_.each(hidden / PANEL, [&](std::size_t part, std::size_t) {
        run_.mean(wide + part * PANEL, rows, PANEL, hidden, wide + part * PANEL);
    });
    run_.mean(x, rows, dim_, dim_, x);
    product(block.narrow, wide, 1, room);
    add(room, 1, x);
}

// Eq. 2-5 and the mean over the tokens, for a modality that is present.
void ItemFusion::Pass::present(const Side& side, const TokenRows& tokens, const TokenRows& other,
                               float* out) const {
    const std::size_t rows = tokens.count;
    float *x = room_, *gate = x + rows * dim_, *rest = gate + rows * dim_;
    if (other.count) {
        attend_to(side, tokens, other, x, gate);
        product(side.gate_attended, 0, side.gate_bias_present.data(), x, rows, gate);
        product(side.gate_own, 0, nullptr, tokens.values, rows, rest);
        add(rest, rows, gate);
        blend(tokens.values, gate, rows, x, dim_, x);
    } else {
        product(side.gate_own, 0, side.gate_bias_alone.data(), tokens.values, rows, gate);
        blend(tokens.values, gate, rows, side.attended_absent.data(), 0, x);
    }
    attend(side.block, x, rows, gate);
    feed_and_mean(side.block, x, rows, gate);
    std::copy_n(x, dim_, out);
}

// Eq. 2: what our tokens get from the other's.
void ItemFusion::Pass::attend_to(const Side& side, const TokenRows& tokens, const TokenRows& other,
                                 float* attended, float* room) const {
    const std::size_t rows = tokens.count;
    float *q = room, *kv = q + rows * dim_;
    product(side.q, tokens.values, rows, q);
    product(side.kv, other.values, other.count, kv);
    attention({q, dim_, rows}, {kv, kv + dim_, 2 * dim_, other.count}, attended);
    product(side.out, attended, rows, q);
    normed(side.norm, q, rows, attended);
}

// The same for a modality that is absent: one zero token, whose self-attention is its value.
void ItemFusion::Pass::absent(const Side& side, const TokenRows& other, float* out) const {
    const std::size_t heads = network_.heads, width = dim_ / heads;
    float *x = room_, *y = x + dim_, *pooled = y + dim_, *rest = pooled + heads * dim_, *scores = rest;
    by_rows(other.count, [&](std::size_t first, std::size_t count) {
        run_.product(other.values + first * dim_, count, side.question.all(), nullptr, scores + first * PANEL,
                     PANEL);
    });
    run_.softmax_columns(scores, other.count, heads);
    steps_.each(heads, [&](std::size_t head, std::size_t) {
        const std::size_t first = head * width;
        run_.pool(other.values, other.count, dim_, scores + head, pooled + head * dim_);
        run_.product(pooled + head * dim_, 1, side.kv.weight.columns(dim_ + first, width),
                     side.kv.bias.data() + dim_ + first, x + first, width);
    });
    product(side.out, x, 1, y);
    normed(side.norm, y, 1, x);
    product(side.gate_attended, 0, side.gate_bias.data(), x, 1, y);
    std::fill_n(out, dim_, 0.0f);
    blend(out, y, 1, x, dim_, out);
    normed(side.block.norm1, out, 1, x);
    value(side.block.qkv, x, y);
    product(side.block.out, y, 1, x);
    add(x, 1, out);
    feed(side.block, out, 1, rest);
}

// Eq. 6: both sides (2, D), their modalities marked, to the embedding.
void ItemFusion::Pass::unite(float* embedding) const {
    for (const Block& block : network_.blocks) {
        attend(block, pair_, 2, room_);
        if (&block == &network_.blocks.back())
            feed_and_mean(block, pair_, 2, room_);
        else
            feed(block, pair_, 2, room_);
    }
    normed(network_.norm, pair_, 1, pair_);
    product(network_.head, pair_, 1, room_);
    double squares = 1e-24;
    for (std::size_t i = 0; i < dim_; ++i) squares += static_cast<double>(room_[i]) * room_[i];
    for (std::size_t i = 0; i < dim_; ++i) embedding[i] = static_cast<float>(room_[i] / std::sqrt(squares));
}

void ItemFusion::Pass::embed(const Item& item, float* embedding) const {
    const TokenRows tokens[] = {item.image, item.text};
    for (std::size_t i = 0; i < 2; ++i) {
        float* out = pair_ + i * dim_;
        if (tokens[i].count) {
            present(network_.sides[i], tokens[i], tokens[1 - i], out);
            run_.add(network_.modality.data() + i * dim_, dim_, out);
        } else {
            absent(network_.sides[i], tokens[1 - i], out);
        }
    }
    unite(embedding);
}

ItemFusion::ItemFusion(const NamedArrays& arrays, std::size_t heads, std::shared_ptr<Crew> crew,
                       const std::string& instructions)
    : crew_(std::move(crew)) {
    const RowKernels* kernels = row_kernels(instructions);
    if (!kernels) throw std::invalid_argument("this CPU has no AVX2");
    network_ = std::make_unique<const Network>(arrays, heads, *kernels);
}

ItemFusion::ItemFusion(ItemFusion&&) noexcept = default;
ItemFusion& ItemFusion::operator=(ItemFusion&&) noexcept = default;
ItemFusion::~ItemFusion() = default;

std::size_t ItemFusion::embed_dim() const { return network_->dim; }

void ItemFusion::embed(const std::vector<Item>& items, float* embeddings) const {
    std::size_t rows = 2;  // the two of eq. 6
    for (const Item& each : items) {
        if (!each.image.count && !each.text.count)
            throw std::invalid_argument("an item has neither image nor text tokens");
        rows = std::max({rows, each.image.count, each.text.count});
    }
    if (items.empty()) return;
    const Network& network = *network_;
    const std::size_t useful = useful_threads(network.dim, rows), room = network.room_for(rows),
                      scratch = network.scratch_for(rows);
    crew_->share(std::max(useful, items.size()), [&](Steps& steps, std::size_t threads) {
        if (items.size() < std::min(threads, useful)) {  // one after the other, each on all threads
            Rooms::Lent lent(network.rooms, room + threads * scratch);
            const Pass pass(network, steps, rows, lent.data());
            for (std::size_t i = 0; i < items.size(); ++i) pass.embed(items[i], embeddings + i * network.dim);
            return;
        }
        std::deque<Rooms::Lent> lent;  // here, as no room may be an error in a thread
        for (std::size_t i = 0; i < threads; ++i) lent.emplace_back(network.rooms, room + scratch);
        steps.each(items.size(), [&](std::size_t i, std::size_t thread) {
            Steps alone;
            Pass(network, alone, rows, lent[thread].data()).embed(items[i], embeddings + i * network.dim);
        });
    });
}

}  // namespace uniecs
