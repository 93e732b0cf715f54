#include <algorithm>
#include <cstring>

#include "impl.hpp"

#if !defined(_WIN32)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace uniecs {

namespace {

#if !defined(_WIN32)
constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;
#else
constexpr std::size_t LINE = 64;  // of a cache
#endif

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

// On a boundary of huge pages, for the system has those for whole ones alone; smaller tables on one of pages.
void* allocate_pages(std::size_t bytes) {
#if !defined(_WIN32)
    const std::size_t spare = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    void* mapped = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    if (!spare) return mapped;
    auto* start = static_cast<std::byte*>(mapped);
    const std::size_t before = (HUGE_PAGE - reinterpret_cast<std::uintptr_t>(start) % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(start, before);
    start += before;
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t pages = (bytes + page - 1) / page * page;
    if (pages < bytes + spare - before) munmap(start + pages, bytes + spare - before - pages);
#if defined(MADV_HUGEPAGE)
    madvise(start, bytes, MADV_HUGEPAGE);  // advice only
#endif
    return start;
#else
    void* memory = ::operator new(bytes, std::align_val_t{LINE});
    std::memset(memory, 0, bytes);
    return memory;
#endif
}

void free_pages(void* memory, std::size_t bytes) {
#if !defined(_WIN32)
    munmap(memory, bytes);
#else
    (void)bytes;
    ::operator delete(memory, std::align_val_t{LINE});
#endif
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
    return impl_->search(query, k, options, impl_->matching(options));
}

std::vector<Hits> Graph::search_batch(Span<const float> queries, std::size_t k, const SearchOptions& options,
                                      unsigned threads) const {
    const std::size_t dim = impl_->config.dim;
    if (queries.size() % dim)
        throw std::invalid_argument("the queries have " + std::to_string(queries.size()) +
                                    " components, no multiple of " + std::to_string(dim));
    std::vector<Hits> hits(queries.size() / dim);
    const std::size_t matching = impl_->matching(options);
    in_parallel(hits.size(), std::max(1u, threads), [&](std::size_t i) {
        hits[i] = impl_->search(Span<const float>(queries.data() + i * dim, dim), k, options, matching);
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
        upper += nodes.upper_words(nodes.tower(node).layers) * sizeof(Word);
    stats.vector_bytes =
        count * (nodes.codec.bytes() + (nodes.coarse() ? nodes.walked.bytes() : 0) + sizeof(Scale));
    stats.link_bytes = count * (1 + 2 * nodes.M) * sizeof(Word) + upper;
    stats.other_bytes = count * (sizeof(Header) - sizeof(Scale) + sizeof(Tower)) + impl_->node_by_row.bytes();
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
