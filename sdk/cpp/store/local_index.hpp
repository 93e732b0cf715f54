// The index in a folder: the store keeps the truth, and one graph a view, derived from it, finds neighbours.
// The same as sdk/uniecs/local_index.py, over the same files: one process writes, any number read and follow
// it within a second.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "filter_sets.hpp"
#include "store.hpp"

namespace uniecs::store {

struct Found {
    RecordPtr product;
    float score;
};

// Any number of threads may search beside one change at a time.
class LocalIndex {
  public:
    // A new, empty index in `folder`. Throws IndexFileError if that already holds something or cannot be
    // written.
    static std::unique_ptr<LocalIndex> create(const std::string& folder, const Header& header,
                                              const OpenOptions& options);
    // The graphs from their snapshots, brought up to the store, or made anew from it.
    static std::unique_ptr<LocalIndex> open(const std::string& folder, const OpenOptions& options);

    LocalIndex(std::unique_ptr<Store> store, const OpenOptions& options);

    const Header& header() const { return store_->header(); }
    std::size_t size() const;
    // Which of `ids` the index holds.
    std::set<std::string> known(const std::vector<std::string>& ids) const;
    std::set<std::string> attribute_keys() const;
    // Throws InputError for an unknown id, or one with no vector in the view.
    std::vector<float> vector(const std::string& id, const std::string& view) const;

    void put(const std::vector<NewProduct>& products);
    void remove(const std::vector<std::string>& ids);
    // Write a snapshot of each graph that changed since its last; without one the next opening builds it.
    void save();
    void close();

    // For each of the queries (n x embed_dim, of norm 1) the k most similar products that match, best first.
    std::vector<std::vector<Found>> search(const std::string& view, Span<const float> queries, std::size_t k,
                                           const Filter* where);

  private:
    struct View {
        std::shared_ptr<Graph> graph;  // by std::atomic_load; nullptr: closed
        // What of the store the graph shows; `last_row` under `changing_`.
        std::atomic<std::uint64_t> sequence{0};
        Row last_row = 0;
        std::optional<std::uint64_t> saved;  // the sequence of its snapshot
    };
    struct Reached {
        std::uint64_t sequence;
        Row last_row;
    };

    std::shared_ptr<Graph> empty_graph() const;
    std::string snapshot_path(const std::string& view) const;
    std::string owner() const;
    void load(Reader& reader, const std::string& view);
    Reached catch_up(Reader& reader, const std::string& view, Graph& graph, Reached reached,
                     bool at_once) const;
    Reached build(Reader& reader, const std::string& view, Graph& graph) const;
    void show(const std::string& view, const Changed& changed, const std::vector<NewProduct>& products);
    void forget_filters(std::size_t deleted);
    template <typename Work>
    void change(Work work);
    void refresh(Reader& reader);
    void see_changes(Reader& reader);
    void follow();
    void remove_unusable() const;
    bool needs_save(const std::string& view) const;
    std::vector<Row> rows_matching(Reader& reader, const Filter& predicate);

    // No value: some of what the graph shows is gone from the store.
    std::optional<std::vector<std::vector<Found>>> find(Reader& reader, const std::string& view,
                                                        Span<const float> queries, std::size_t k,
                                                        const Filter* where);
    std::vector<Hits> in_graph(Reader& reader, const std::string& view, Span<const float> queries,
                               std::size_t k, const Filter* where);
    bool rescore(Reader& reader, const std::string& view, Span<const float> queries, std::size_t k,
                 std::vector<Hits>& hits) const;

    std::unique_ptr<Store> store_;
    const std::function<void(const std::string&)> warning_;
    const unsigned cpus_, threads_;
    mutable std::recursive_mutex changing_;
    FilterSets filters_;
    std::map<std::string, View> views_;
    std::size_t deleted_ = 0;
    std::atomic<bool> behind_{false};
    std::atomic<std::int64_t> looked_;  // nanoseconds of the steady clock
};

}  // namespace uniecs::store
