#include <algorithm>
#include <cmath>
#include <exception>
#include <system_error>
#include <unordered_set>

#include "impl.hpp"

namespace uniecs {

namespace {

constexpr unsigned MOST_LAYERS = 24;
// `apply` repairs the graph once this share of its nodes are removed ones.
constexpr double REPAIR_SHARE = 0.3;
constexpr std::size_t REPAIR_LEAST = 64;

// A layer by the row alone (splitmix64): the same whatever the number of threads (Algorithm 4, line 4).
unsigned layers_of(Row row, std::size_t M) {
    std::uint64_t x = row + 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    const double uniform = (static_cast<double>(x >> 11) + 1) * 0x1p-53;  // 0 excluded, 1 included
    return std::min(MOST_LAYERS,
                    static_cast<unsigned>(-std::log(uniform) / std::log(static_cast<double>(M))));
}

}  // namespace

void in_parallel(std::size_t n, unsigned threads, const std::function<void(std::size_t)>& work) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    const auto run = [&] {
        try {
            for (std::size_t i; (i = next.fetch_add(1)) < n;) work(i);
        } catch (...) {
            next.store(n);
            const std::lock_guard<std::mutex> lock(failing);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    try {
        for (std::size_t t = 1; t < std::min<std::size_t>(threads, n); ++t) others.emplace_back(run);
    } catch (const std::system_error&) {  // those that there are do all of it
    }
    run();
    for (std::thread& each : others) each.join();
    if (failure) std::rethrow_exception(failure);
}

void Graph::Impl::check(Span<const Row> gone, Span<const Row> rows, Span<const float> vectors) const {
    if (vectors.size() != rows.size() * config.dim)
        throw std::invalid_argument(std::to_string(vectors.size()) + " components for " +
                                    std::to_string(rows.size()) + " rows of " + std::to_string(config.dim));
    for (float component : vectors)
        if (!std::isfinite(component))
            throw std::invalid_argument("a vector has a component that is not finite");
    std::unordered_set<Row> seen;
    for (Row row : gone) {
        const Node node = node_of(row);
        if (node == NO_NODE || !nodes.linked_for_good(node) || !seen.insert(row).second)
            throw std::invalid_argument("row " + std::to_string(row) +
                                        " cannot be removed: it is not in the graph");
    }
    for (Row row : rows)
        if (row == 0 || row >= MOST_ROWS || node_of(row) != NO_NODE || !seen.insert(row).second)
            throw std::invalid_argument("row " + std::to_string(row) +
                                        " cannot be added: it is 0, too large, or was used");
}

void Graph::Impl::apply(Span<const Row> gone, Span<const Row> rows, Span<const float> vectors,
                        unsigned threads) {
    const std::lock_guard<std::mutex> lock(writing);
    check(gone, rows, vectors);
    const Step next = step.load() + 1;
    std::vector<Node> added;
    if (nodes.count == 0)
        nodes.set_centre(rows.size(), [&](std::size_t i) { return vectors.data() + i * config.dim; });
    try {
        leaving.clear();
        for (Row row : gone) leaving.insert(node_of(row));
        for (std::size_t i = 0; i < rows.size(); ++i)
            added.push_back(new_node(rows[i], vectors.data() + i * config.dim, next));
        in_parallel(added.size(), threads, [&](std::size_t i) { insert(added[i], true); });
    } catch (...) {  // out of memory: the nodes stay, but no search ever sees them
        for (Node node : added) nodes.header(node).removed.store(0);
        removed += added.size();
        throw;
    }
    for (Row row : gone) nodes.header(node_of(row)).removed.store(next, std::memory_order_release);
    live += rows.size();
    live -= gone.size();
    removed += gone.size();
    step.store(next, std::memory_order_release);
    for (Row row : gone) promote(node_of(row));
    if (removed >= REPAIR_LEAST &&
        static_cast<double>(removed) > REPAIR_SHARE * static_cast<double>(live + removed))
        repair(threads);
    measure_walks(rows.size() + gone.size(), threads);
}

// A place with its vector, not yet linked.
Node Graph::Impl::new_node(Row row, const float* vector, Step at) {
    node_by_row.reach(row);
    const bool reused = !free.empty();
    const Node node = reused ? free.back() : nodes.count.load();
    nodes.make_room(node);
    const unsigned layers = layers_of(row, config.M);
    std::unique_ptr<Word[]> upper(layers ? new Word[nodes.upper_words(layers)] : nullptr);
    for (std::size_t i = 0; i < nodes.upper_words(layers); ++i) upper[i].store(0, std::memory_order_relaxed);
    if (reused) free.pop_back();
    Header& header = nodes.header(node);
    Tower& tower = nodes.tower(node);
    header.row = static_cast<std::uint32_t>(row);
    header.twin.store(0);
    tower.layers = static_cast<std::uint8_t>(layers);
    tower.leads = true;
    nodes.scale(node) = nodes.codec.encode(vector, nodes.vector(node));
    nodes.derive_codes(node);
    nodes.links(node, 0)[0].store(0);
    delete[] tower.upper.exchange(upper.release());
    header.added.store(at, std::memory_order_release);
    header.removed.store(NEVER, std::memory_order_release);
    if (!reused) nodes.count.store(node + 1, std::memory_order_release);
    give(row, node);
    return node;
}

// Algorithm 1. All of a node's own links are there before the first link leads to it. A node that `joins` may
// become the twin of another instead.
void Graph::Impl::insert(Node node, bool joins) {
    const unsigned layers = nodes.tower(node).layers;
    std::unique_lock<std::mutex> lock(entering);
    if (entry_node() == NO_NODE) return set_entry(node);
    const bool rises = layers > entry_layers();
    if (!rises) lock.unlock();
    Lent s(*this);
    s->gives_way = true;
    s->query.set_stored(nodes.codes(node), nodes.scale(node));
    const unsigned top = std::min(layers, entry_layers());
    std::vector<Near> entries = starts(*s, entry.load(std::memory_order_acquire), top);
    std::vector<std::vector<Node>> chosen(top + 1);
    std::vector<Near> candidates;
    for (unsigned layer = top + 1; layer-- > 0;) {
        search_layer(*s, {entries.data(), entries.size()}, config.ef_construction, layer);
        candidates.clear();
        for (const Near& each : s->beam.nodes())
            if (each.node != node && nodes.linked_for_good(each.node)) candidates.push_back(each);
        if (candidates.empty())  // all are removed ones: they still lead on
            for (const Near& each : s->beam.nodes())
                if (each.node != node) candidates.push_back(each);
        if (layer == 0 && joins && join(node, candidates)) return;
        entries.assign(
            s->beam.nodes().begin(),
            s->beam.nodes().begin() + static_cast<std::ptrdiff_t>(std::min(STARTS, s->beam.nodes().size())));
        select(*s, candidates, config.M, chosen[layer]);
        set_links(node, layer, chosen[layer]);
    }
    for (unsigned layer = 0; layer <= top; ++layer)
        for (Node neighbour : chosen[layer]) link_back(*s, neighbour, node, layer), give_way();
    if (rises) set_entry(node);
}

void Graph::Impl::set_links(Node node, unsigned layer, const std::vector<Node>& links) {
    const NodeLock lock(nodes.tower(node).lock);
    write_links(nodes.links(node, layer), links.data(), links.size());
}

// Algorithm 4: of the candidates, nearest first, those that are nearer to the query than to any chosen
// before.
void Graph::Impl::select(Scratch& s, const std::vector<Near>& candidates, std::size_t most,
                         std::vector<Node>& out) const {
    out.clear();
    for (const Near& each : candidates) {
        if (out.size() == most) return;
        if (!out.empty()) s.other.set_stored(nodes.codes(each.node), nodes.scale(each.node));
        const bool apart = std::all_of(out.begin(), out.end(), [&](Node chosen) {
            return s.other.score(nodes.codes(chosen), nodes.scale(chosen)) <= each.score;
        });
        if (apart) out.push_back(each.node);
    }
}

// Link `from` to `to`; of too many links the best apart are kept.
void Graph::Impl::link_back(Scratch& s, Node from, Node to, unsigned layer) {
    const NodeLock lock(nodes.tower(from).lock);
    Word* links = nodes.links(from, layer);
    const std::size_t most = nodes.most_links(layer);
    s.links.resize(2 * config.M + 1);
    std::size_t n = read_links(links, most, s.links.data());
    if (std::find(s.links.begin(), s.links.begin() + static_cast<std::ptrdiff_t>(n), to) !=
        s.links.begin() + static_cast<std::ptrdiff_t>(n))
        return;
    if (n < most) {
        links[1 + n].store(to, std::memory_order_release);
        links[0].store(static_cast<std::uint32_t>(n + 1), std::memory_order_release);
        return;
    }
    s.links[n++] = to;
    s.other.set_stored(nodes.codes(from), nodes.scale(from));
    std::vector<Near> candidates;
    for (std::size_t i = 0; i < n; ++i)
        candidates.push_back({s.other.score(nodes.codes(s.links[i]), nodes.scale(s.links[i])), s.links[i]});
    std::sort(candidates.begin(), candidates.end(), nearer);
    std::vector<Node> kept;
    select(s, candidates, most, kept);
    write_links(links, kept.data(), kept.size());
}

}  // namespace uniecs
