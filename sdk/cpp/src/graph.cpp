#include <algorithm>

#include "impl.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace uniecs {

namespace {

constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;

GraphConfig checked(const GraphConfig& config) {
    if (config.dim < 1 || config.dim > 65536)
        throw std::invalid_argument("dim is " + std::to_string(config.dim) + "; expected 1 to 65536");
    if (config.M < 2 || config.M > 512)
        throw std::invalid_argument("M is " + std::to_string(config.M) + "; expected 2 to 512");
    if (config.ef_construction < config.M || config.ef_construction > 10'000)
        throw std::invalid_argument("ef_construction is " + std::to_string(config.ef_construction) +
                                    "; expected " + std::to_string(config.M) + " (M) to 10000");
    if (config.storage > Storage::int8) throw std::invalid_argument("unknown storage");
    return config;
}

}  // namespace

void* allocate_pages(std::size_t bytes) {
#if defined(__linux__)
    if (bytes >= HUGE_PAGE) {
        void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        madvise(memory, bytes, MADV_HUGEPAGE);  // advice only
        return memory;
    }
#endif
    void* memory = std::calloc(1, bytes);
    if (!memory) throw std::bad_alloc();
    return memory;
}

void free_pages(void* memory, std::size_t bytes) {
#if defined(__linux__)
    if (bytes >= HUGE_PAGE) {
        munmap(memory, bytes);
        return;
    }
#endif
    std::free(memory);
}

Graph::Impl::Impl(const GraphConfig& given) : config(checked(given)), nodes(config) {}

Graph::Graph(const GraphConfig& config) : impl_(std::make_unique<Impl>(config)) {}
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;

const GraphConfig& Graph::config() const { return impl_->config; }

std::size_t Graph::size() const { return impl_->live.load(); }

bool Graph::contains(Row row) const {
    const auto guard = impl_->readers.enter();
    const Node node = impl_->node_of(row);
    return node != NO_NODE && impl_->nodes.visible(node, impl_->step.load());
}

std::vector<Row> Graph::rows() const {
    const auto guard = impl_->readers.enter();
    const Step now = impl_->step.load(std::memory_order_acquire);
    std::vector<Row> found;
    for (Node node = 0, n = impl_->nodes.count.load(std::memory_order_acquire); node < n; ++node)
        if (impl_->nodes.visible(node, now)) found.push_back(impl_->nodes.header(node).row);
    std::sort(found.begin(), found.end());
    return found;
}

void Graph::apply(Span<const Row> removed, Span<const Row> rows, Span<const float> vectors,
                  unsigned threads) {
    impl_->apply(removed, rows, vectors, std::max(1u, threads));
}

void Graph::repair(unsigned threads) {
    const std::lock_guard<std::mutex> lock(impl_->writing);
    impl_->repair(std::max(1u, threads));
}

Hits Graph::search(Span<const float> query, std::size_t k, const SearchOptions& options) const {
    return impl_->search(query, k, options);
}

std::vector<Hits> Graph::search_batch(Span<const float> queries, std::size_t k, const SearchOptions& options,
                                      unsigned threads) const {
    const std::size_t dim = impl_->config.dim;
    if (queries.size() % dim)
        throw std::invalid_argument("the queries have " + std::to_string(queries.size()) +
                                    " components, no multiple of " + std::to_string(dim));
    std::vector<Hits> hits(queries.size() / dim);
    SearchOptions counted = options;
    if (options.filter && options.matching == SIZE_MAX) counted.matching = options.filter->count();
    in_parallel(hits.size(), std::max(1u, threads), [&](std::size_t i) {
        hits[i] = impl_->search(Span<const float>(queries.data() + i * dim, dim), k, counted);
    });
    return hits;
}

bool Graph::vector(Row row, Span<float> out) const {
    const auto guard = impl_->readers.enter();
    const Node node = impl_->node_of(row);
    if (node == NO_NODE || !impl_->nodes.visible(node, impl_->step.load()) || out.size() != impl_->config.dim)
        return false;
    impl_->nodes.codec.decode(impl_->nodes.vector(node), impl_->nodes.scale(node), out.data());
    return true;
}

GraphStats Graph::stats() const {
    const std::lock_guard<std::mutex> lock(impl_->writing);
    const Nodes& nodes = impl_->nodes;
    const std::size_t count = nodes.count.load();
    GraphStats stats;
    stats.live = impl_->live.load();
    stats.removed = impl_->removed.load();
    stats.free = impl_->free.size();
    stats.top_layer = impl_->entry_node() == NO_NODE ? 0 : impl_->entry_layers();
    std::size_t upper = 0;
    for (Node node = 0; node < count; ++node)
        upper += nodes.upper_words(nodes.header(node).layers) * sizeof(Word);
    stats.vector_bytes =
        count * (nodes.codec.bytes() + (nodes.coarse() ? nodes.walked.bytes() : 0) + sizeof(Scale));
    stats.link_bytes = count * (1 + 2 * nodes.M) * sizeof(Word) + upper;
    stats.other_bytes = count * sizeof(Header) + impl_->node_by_row.bytes();
    return stats;
}

void Graph::save(const std::string& path, const SnapshotInfo& info) const {
    const std::lock_guard<std::mutex> lock(impl_->writing);
    impl_->save(path, info);
}

Graph Graph::load(const std::string& path, const GraphConfig& config, const std::string& model_id,
                  SnapshotInfo* info) {
    Graph graph(config);
    graph.impl_->load(path, model_id, info);
    return graph;
}

}  // namespace uniecs
