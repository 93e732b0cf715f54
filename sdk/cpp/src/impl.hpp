// What a Graph consists of; its parts are in the files named below.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <unordered_set>

#include "nodes.hpp"
#include "pacing.hpp"
#include "readers.hpp"
#include "row_words.hpp"

namespace uniecs {

// Nodes of a layer that a search of the layer below starts from.
constexpr std::size_t STARTS = 8;

// A node and its inner product with the query; nearer is higher. `marked` is for whoever keeps it.
struct Near {
    Near() = default;
    Near(float score_, Node node_) : score(score_), node(node_), marked(0) {}
    float score;
    Node node : 31, marked : 1;  // Nodes has room for 2^30
};
inline bool nearer(const Near& a, const Near& b) { return a.score > b.score; }

// A walk ends before its beam is expanded whole once it has expanded more than `most` nodes and none came to
// the nearest `top`; once what is left to expand is more than `slack` times as far off as the last of these,
// by squared distances; or once that last one is no farther than `close`, and the nearest `few` are expanded.
struct Patience {
    std::size_t top = 0, most = SIZE_MAX;
    float slack = std::numeric_limits<float>::infinity(), close = -1;
    std::size_t few = SIZE_MAX;
};

// How broad a walk for ten has to be that finds nearly all of them; and for queries whose ten are as close to
// them as products are to each other.
struct Breadth {
    std::size_t any = 30, close = 30;
};

// How far walks of a graph have to go, as measured on it (breadth.cpp).
struct WalkLimits {
    // The parts of the nodes that a filter lets through, for which that was measured.
    static constexpr double SHARES[] = {1, 0.5, 0.1};
    std::array<Breadth, std::size(SHARES)> breadths;
    float close = Patience{}.close;  // the squared distance of the tenth of products that is called close
    float slack = Patience{}.slack;  // of a Patience that loses next to none of the ten

    double breadth(double share, std::size_t Breadth::* of) const;  // between what was measured
};

// Whether a node is of this part of all, as if drawn at random.
inline bool strewn(Node node, double share) {
    return static_cast<double>(static_cast<std::uint32_t>(node * 2654435761U)) < share * 4294967296.0;
}

// The `ef` nearest nodes met so far, nearest first, marked once they are expanded (Algorithm 2's two heaps in
// one).
class Beam {
  public:
    void start(std::size_t ef, Patience patience = {});
    void set_patience(Patience patience) { patience_ = patience; }
    bool takes(float score) const { return nodes_.size() < ef_ || score > nodes_.back().score; }
    void add(float score, Node node);
    bool too_far(float score) const;  // for the walk to go on by a node of this score
    Node peek();                      // the nearest node not yet expanded, NO_NODE if there is none
    Node next();                      // the same, expanded from now on; NO_NODE where the walk ends
    const std::vector<Near>& nodes() const { return nodes_; }

  private:
    std::size_t ef_ = 0, cursor_ = 0, calm_ = 0;  // calm: nodes expanded since the nearest `top` changed
    Patience patience_;
    std::vector<Near> nodes_;
};

// What one search needs of memory; kept between searches.
struct Scratch {
    explicit Scratch(const Nodes& nodes) : query(nodes.walked), other(nodes.walked), exact(nodes.codec) {}

    bool visit(Node node);  // false if it was visited before
    void forget();

    Query query, other, exact;  // `exact` where codes lie beside the vectors
    Beam beam;
    std::vector<std::uint64_t> visited;
    std::vector<Node> touched, batch, order, links, skipped;
    std::vector<Near> seeds;
    std::vector<const std::byte*> codes;
    std::vector<Scale> scales;
    std::vector<float> scores;
    std::size_t compared = 0;
    bool gives_way = false;  // where the walk is a change's
    Node hidden = NO_NODE;   // walks in the lowest layer do not meet it
};

class Graph::Impl {
  public:
    explicit Impl(const GraphConfig& config);

    // Lends a Scratch, and gives it back.
    class Lent {
      public:
        explicit Lent(const Impl& impl);
        ~Lent();
        Scratch* operator->() { return scratch_.get(); }
        Scratch& operator*() { return *scratch_; }

      private:
        const Impl& impl_;
        std::unique_ptr<Scratch> scratch_;
    };

    // build.cpp
    void apply(Span<const Row> removed, Span<const Row> rows, Span<const float> vectors, unsigned threads);
    void check(Span<const Row> removed, Span<const Row> rows, Span<const float> vectors) const;
    Node new_node(Row row, const float* vector, Step step);
    void insert(Node node, bool joins);
    void select(Scratch& s, const std::vector<Near>& candidates, std::size_t most,
                std::vector<Node>& out) const;
    void link_back(Scratch& s, Node from, Node to, unsigned layer);
    void set_links(Node node, unsigned layer, const std::vector<Node>& links);

    // twins.cpp
    bool join(Node node, const std::vector<Near>& candidates);
    bool twins(Node a, Node b) const;
    void promote(Node gone);
    bool leave_rings();
    Node without_ring() const;
    // Calls f for a node and its twins until it gives true.
    template <typename F>
    bool any_twin(Node node, F f) const {
        Node each = node;
        do {
            if (f(each)) return true;
            each = nodes.twin(each);
        } while (each != node);
        return false;
    }

    // repair.cpp
    void repair(unsigned threads);
    void repair_node(Scratch& s, Node node);
    void choose_entry();

    // breadth.cpp
    class Probe;
    void measure_walks(std::size_t changes, unsigned threads);
    std::vector<Node> sample_nodes() const;
    std::vector<float> stray(const std::vector<Node>& from) const;

    // search.cpp
    Hits search(Span<const float> query, std::size_t k, const SearchOptions& options,
                std::size_t matching) const;
    std::size_t matching(const SearchOptions& options) const;
    double share_of(std::size_t matching) const;
    Plan plan(std::size_t k, const SearchOptions& options, std::size_t matching,
              const WalkLimits& limits) const;
    void search_graph(Scratch& s, std::uint64_t entry, std::size_t ef, Patience patience = {}) const;
    void search_strewn(Scratch& s, std::uint64_t entry, std::size_t ef, Patience patience,
                       double share) const;
    template <typename Passes>
    bool search_around(Scratch& s, Span<const Near> entries, std::size_t ef, Patience patience, double share,
                       Passes passes) const;
    template <typename Passes>
    bool search_filtered(Scratch& s, std::uint64_t entry, const Plan& plan, Patience patience, bool thorough,
                         Passes passes) const;
    template <typename Passes>
    void exact(Scratch& s, const float* query, std::size_t k, const RowSet::Words* filter, Passes passes,
               std::vector<Near>& found) const;
    template <typename Visible>
    void take_twins(Scratch& s, std::size_t enough, Visible visible, std::vector<Near>& found) const;
    void keep_best(std::vector<Near>& found, std::size_t k) const;
    void score_anew(Scratch& s, std::size_t k, std::vector<Near>& found) const;
    void score_exactly(Scratch& s, Span<Near> those) const;
    Node descend(Scratch& s, std::uint64_t entry, unsigned to_layer) const;
    void search_layer(Scratch& s, Span<const Near> entries, std::size_t ef, unsigned layer,
                      Patience patience = {}) const;
    void walk(Scratch& s, unsigned layer) const;
    std::vector<Near> starts(Scratch& s, std::uint64_t entry, unsigned layer) const;
    void prefetch_links(Node node) const;
    void gather(Scratch& s, Node node, unsigned layer) const;
    void compare_batch(Scratch& s) const;
    void score_batch(Scratch& s) const;
    float score(const Scratch& s, Node node) const {
        return s.query.score(nodes.codes(node), nodes.scale(node));
    }

    void give(Row row, Node node);
    Node node_of(Row row) const;  // NO_NODE if it never was, or is removed for good

    // snapshot.cpp
    void save(const std::string& path, const SnapshotInfo& info) const;
    void derive_codes();
    void load(const std::string& path, const std::string& model_id, SnapshotInfo* info);

    const GraphConfig config;
    Nodes nodes;
    RowTable node_by_row;  // plus one; 0: none
    RowSet given;          // rows, some of which may be removed for good
    std::atomic<Row> last_given{0};
    std::atomic<std::uint64_t> entry{0};           // the node to start from, plus one, below its layers
    std::atomic<Step> step{1};                     // of the last `apply`; 0 is before all
    std::atomic<std::size_t> live{0}, removed{0};  // `removed`: still linked
    std::unique_ptr<const WalkLimits> measured = std::make_unique<WalkLimits>();
    std::atomic<const WalkLimits*> walk_limits{measured.get()};  // what searches go by, whole: it is replaced
    std::size_t changed = 0;                                     // nodes, since that was measured
    mutable std::mutex writing;                                  // one change at a time
    std::mutex entering;                                         // a node that may become the entry
    std::vector<Node> free;
    std::unordered_set<Node> leaving;  // of the nodes, those that this change removes
    Readers readers;
    mutable std::mutex lending;
    mutable std::vector<std::unique_ptr<Scratch>> idle;

    Node entry_node() const {
        return static_cast<Node>(entry.load(std::memory_order_acquire) & 0xffffffff) - 1;
    }
    unsigned entry_layers() const {
        return static_cast<unsigned>(entry.load(std::memory_order_acquire) >> 32);
    }
    void set_entry(Node node) {
        entry.store((std::uint64_t{node == NO_NODE ? 0u : nodes.tower(node).layers} << 32) | (node + 1u),
                    std::memory_order_release);
    }
};

// Calls work(i) for every i below n on up to `threads` threads, fewer where the system gives no more; the
// first exception is thrown after all have ended.
void in_parallel(std::size_t n, unsigned threads, const std::function<void(std::size_t)>& work);

}  // namespace uniecs
