// The memory of a graph: nodes in blocks that never move, so that searches need no lock while it grows.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "distance.hpp"

namespace uniecs {

using Node = std::uint32_t;
using Step = std::uint64_t;  // counts calls of `apply` in this process
using Word = std::atomic<std::uint32_t>;

constexpr Node NO_NODE = ~Node{0};
constexpr Step NEVER = ~Step{0};

void* allocate_pages(std::size_t bytes);  // zeroed; in huge pages where the system has them
void free_pages(void* memory, std::size_t bytes);

// A table of T by index that grows in blocks; a reader may look at any index below what it was told of.
template <typename T, unsigned BITS>
class BlockTable {
  public:
    static constexpr std::size_t PER_BLOCK = std::size_t{1} << BITS, BLOCKS = 1 << 16;

    explicit BlockTable(std::size_t width = 1)
        : width_(width),
          blocks_(static_cast<std::atomic<T*>*>(allocate_pages(BLOCKS * sizeof(std::atomic<T*>)))) {}
    BlockTable(const BlockTable&) = delete;
    BlockTable& operator=(const BlockTable&) = delete;
    ~BlockTable() {
        for (std::size_t i = 0; used_; ++i)
            if (T* block = blocks_[i].load()) free_pages(block, block_bytes()), --used_;
        free_pages(blocks_, BLOCKS * sizeof(std::atomic<T*>));
    }

    T* at(std::size_t index) const {
        return blocks_[index >> BITS].load(std::memory_order_acquire) + (index & (PER_BLOCK - 1)) * width_;
    }
    T* find(std::size_t index) const {  // nullptr where the table does not reach
        return index < PER_BLOCK * BLOCKS && blocks_[index >> BITS].load(std::memory_order_acquire)
                   ? at(index)
                   : nullptr;
    }
    T* reach(std::size_t index) {  // makes the block of an index; one thread at a time
        const std::size_t block = index >> BITS;
        if (block >= BLOCKS) throw std::length_error("the graph is full");
        if (!blocks_[block].load(std::memory_order_relaxed)) {
            blocks_[block].store(static_cast<T*>(allocate_pages(block_bytes())), std::memory_order_release);
            ++used_;
        }
        return at(index);
    }
    std::size_t bytes() const { return used_ * block_bytes(); }

  private:
    std::size_t block_bytes() const { return PER_BLOCK * width_ * sizeof(T); }

    std::size_t width_, used_ = 0;
    std::atomic<T*>* blocks_;
};

using RowTable = BlockTable<std::atomic<Node>, 16>;
constexpr std::uint64_t MOST_ROWS = RowTable::PER_BLOCK * std::uint64_t{RowTable::BLOCKS};

// Held for the few writes of one node's links.
class NodeLock {
  public:
    explicit NodeLock(std::atomic<std::uint8_t>& flag) : flag_(flag) {
        while (flag_.exchange(1, std::memory_order_acquire)) std::this_thread::yield();
    }
    ~NodeLock() { flag_.store(0, std::memory_order_release); }
    NodeLock(const NodeLock&) = delete;
    NodeLock& operator=(const NodeLock&) = delete;

  private:
    std::atomic<std::uint8_t>& flag_;
};

// The fixed fields of a node that a walk reads with its codes: half a cache line. `row`, `scale`, `layers`
// below, and its vector and codes are written before it is linked, and again only after every search that
// could reach it has ended.
struct alignas(32) Header {
    std::atomic<Step> added, removed;  // visible to a search of step s where added <= s < removed
    Scale scale;                       // of the codes
    std::uint32_t row;                 // below MOST_ROWS
    std::atomic<std::uint32_t> twin;  // the next of a ring of nodes that lie at one place, plus one; 0: alone
};
static_assert(sizeof(Header) == 32);

// The others, which changes read.
struct Tower {
    std::atomic<Word*> upper;  // links of layers 1 to `layers`, each a count and M nodes
    std::uint8_t layers;
    std::atomic<std::uint8_t> lock;
    bool leads;  // links lead to it; else it is found by way of a twin
};

class Nodes {
  public:
    explicit Nodes(const GraphConfig& config)
        : centre_(config.dim),
          codec{config.storage, config.dim, centre_.data()},
          walked{coarse() ? Storage::int8 : config.storage, config.dim, centre_.data()},
          M(config.M),
          vectors_(codec.bytes()),
          codes_(walked.bytes()),
          links_(1 + 2 * config.M) {}
    ~Nodes() {
        for (Node node = 0; node < count; ++node) delete[] tower(node).upper.load();
    }

    Header& header(Node node) const { return *headers_.at(node); }
    Tower& tower(Node node) const { return *towers_.at(node); }
    std::byte* vector(Node node) const { return vectors_.at(node); }
    // What walks compare, and its scale: the vector as stored, or beside float32 int8 codes of it.
    std::byte* codes(Node node) const { return coarse() ? codes_.at(node) : vectors_.at(node); }
    Scale& scale(Node node) const { return header(node).scale; }
    bool coarse() const { return codec.storage == Storage::float32; }
    void derive_codes(Node node) {
        if (!coarse()) return;
        const auto* from = reinterpret_cast<const float*>(vector(node));
        scale(node) = walked.encode(from, codes(node));
        const Reach one = walked.reach(from, codes(node), scale(node));
        if (one.length > length_) length_ = one.length;
        if (one.error > error_) error_ = one.error;
    }
    // Of all codes ever derived; a search that sees a node sees what it added to this.
    Reach reach() const { return {length_, error_}; }
    float squared_distance(const float* a, const float* b) const {
        float sum = 0;
        for (std::size_t d = 0; d < codec.dim; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
        return sum;
    }
    // What float16 and int8 count from; (dim,).
    std::vector<float>& centre() { return centre_; }
    const std::vector<float>& centre() const { return centre_; }
    // The mean of n vectors, vector(0) to vector(n - 1): before there are codes.
    template <typename Vector>
    void set_centre(std::size_t n, Vector vector) {
        std::fill(centre_.begin(), centre_.end(), 0.0f);
        const float share = 1 / static_cast<float>(std::max<std::size_t>(1, n));
        for (std::size_t i = 0; i < n; ++i) {
            const float* one = vector(i);
            for (std::size_t d = 0; d < codec.dim; ++d) centre_[d] += share * one[d];
        }
    }
    // Links of a node in a layer: a count, then nodes.
    Word* links(Node node, unsigned layer) const {
        return layer == 0 ? links_.at(node)
                          : tower(node).upper.load(std::memory_order_acquire) + (layer - 1) * (1 + M);
    }
    Node twin(Node node) const {  // the node itself if it is alone
        const std::uint32_t next = header(node).twin.load(std::memory_order_acquire);
        return next ? next - 1 : node;
    }
    std::size_t most_links(unsigned layer) const { return layer == 0 ? 2 * M : M; }
    std::size_t upper_words(unsigned layers) const { return layers * (1 + M); }

    // `removed` first: a place that is used again gets its new `added` before it.
    bool visible(Node node, Step step) const {
        const Header& h = header(node);
        return step < h.removed.load(std::memory_order_acquire) &&
               h.added.load(std::memory_order_acquire) <= step;
    }
    // Not removed, and not behind a twin.
    bool leads_for_good(Node node) const { return linked_for_good(node) && tower(node).leads; }
    bool linked_for_good(Node node) const {
        return header(node).removed.load(std::memory_order_acquire) == NEVER;
    }

    void make_room(Node node) {  // one thread at a time
        headers_.reach(node);
        towers_.reach(node);
        vectors_.reach(node);
        if (coarse()) codes_.reach(node);
        links_.reach(node);
    }

  private:
    std::vector<float> centre_;
    std::atomic<float> length_{0}, error_{0};

  public:
    const Codec codec, walked;
    const std::size_t M;
    std::atomic<Node> count{0};  // places ever given

  private:
    static constexpr unsigned BITS = 14;
    BlockTable<Header, 16> headers_;  // of whole huge pages
    BlockTable<Tower, BITS> towers_;
    BlockTable<std::byte, BITS> vectors_, codes_;
    BlockTable<Word, BITS> links_;
};

inline std::size_t read_links(const Word* links, std::size_t most, Node* out) {
    const std::size_t n = links[0].load(std::memory_order_acquire);
    const std::size_t count = n < most ? n : most;
    for (std::size_t i = 0; i < count; ++i) out[i] = links[1 + i].load(std::memory_order_acquire);
    return count;
}

// Under the node's lock. A search beside it sees old and new nodes mixed, each of them a node that may be
// visited.
inline void write_links(Word* links, const Node* nodes, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) links[1 + i].store(nodes[i], std::memory_order_release);
    links[0].store(static_cast<std::uint32_t>(n), std::memory_order_release);
}

}  // namespace uniecs
