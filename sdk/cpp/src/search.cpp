#include <algorithm>
#include <cmath>
#include <limits>

#include "impl.hpp"

namespace uniecs {

namespace {

// All by measurement (benchmarks/index.py), for a recall@10 above 0.95 on its catalogues.
constexpr std::size_t LEAST_EF = 48, ENOUGH_EF = 128;  // without a filter: for k up to 10, for large ones
// Such a search ends once this part of its breadth was expanded in vain: of one of 128 recall falls by .000
// to .005, and .65 to .97 is compared. In vain: none came to the nearest 2 k, at least 20, some of which may
// be removed ones. Where only what passes is kept, the nearest k, at least 10, tell how far to go.
constexpr std::size_t CALM = 2, LEAST_CALM = 20, LEAST_KEPT = 10;
// The least squared distance that tells how far to go: codes do not tell nearer ones apart.
constexpr float CLOSEST = 0.02f;
// A filtered search around the query: the least breadth, for each that is asked for (10 at least); and how
// much more than what was measured where fewer pass, for then it leads far.
constexpr double NARROW = 1.1;
constexpr double SPARSE_SHARE = 0.1, SPARSE = 2.7, SPARSE_MOST = 3.6;
// Beyond so many, breadths and costs grow by powers of the cube root.
constexpr double LARGE = 100'000;
// A filtered search elsewhere, through nodes that pass alone: the breadth, broader below the first share and
// narrower above the second.
constexpr std::size_t WIDE_EF = 192;
constexpr double THIN_SHARE = 0.15, DENSE_SHARE = 0.25;
// What passes lies elsewhere if, of the nodes around the query, less than this part of the expected number
// passes; judged once so many are expected.
constexpr double ELSEWHERE = 0.35, SURE = 12;
// What breadth costs in vectors compared in order: unfiltered and around the query, and elsewhere.
constexpr std::size_t COMPARED_PER_EF = 24, WALKED_PER_EF = 90;
constexpr double EXACT = 2000;  // so few are always compared: no walk is much faster
// Where less of the rows are in a graph, a filter's own count tells too little.
constexpr double MOST_GIVEN = 0.9;
// Of what a walk by codes found, at least so many at a time are scored by their vectors.
constexpr std::size_t LEAST_RESCORED = 10;
// A search of all that match has so many on their way from memory.
constexpr std::size_t AT_ONCE = 32;
// Of a ring of twins, at least so many are taken: a photo that stands for none may have a million.
constexpr std::size_t MOST_TWINS = 4096;
// The CPU itself fetches on from here.
constexpr std::size_t PREFETCHED_BYTES = 256;

void prefetch(const void* memory) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(memory);
#else
    (void)memory;
#endif
}

// Whether `k` of the nearest `top` of a walk, or of all if they are fewer, pass.
template <typename Passes>
bool shows(const Beam& beam, std::size_t k, std::size_t top, Passes passes) {
    std::size_t found = 0;
    for (std::size_t i = 0; i < std::min(top, beam.nodes().size()) && found < k; ++i)
        found += passes(beam.nodes()[i].node);
    return found == k;
}

void prefetch_start(const std::byte* codes, std::size_t bytes) {
    for (std::size_t byte = 0; byte < std::min(bytes, PREFETCHED_BYTES); byte += 64) prefetch(codes + byte);
}

}  // namespace

void Beam::start(std::size_t ef, Patience patience) {
    ef_ = ef, patience_ = patience, cursor_ = calm_ = 0;
    nodes_.clear();
    nodes_.reserve(ef);
}

void Beam::add(float score, Node node) {
    if (!takes(score)) return;
    const Near one{score, node};
    const auto place = std::upper_bound(nodes_.begin(), nodes_.end(), one, nearer) - nodes_.begin();
    if (static_cast<std::size_t>(place) < patience_.top) calm_ = 0;
    if (nodes_.size() == ef_) nodes_.pop_back();
    nodes_.insert(nodes_.begin() + place, one);
    cursor_ = std::min(cursor_, static_cast<std::size_t>(place));
}

bool Beam::too_far(float score) const {
    if (patience_.top == 0 || nodes_.size() < patience_.top) return false;
    const float last = 2 - 2 * nodes_[patience_.top - 1].score;
    if (last <= patience_.close && nodes_.size() >= patience_.few && score < nodes_[patience_.few - 1].score)
        return true;
    return 2 - 2 * score > patience_.slack * std::max(last, CLOSEST);
}

Node Beam::peek() {
    while (cursor_ < nodes_.size() && nodes_[cursor_].marked) ++cursor_;
    return cursor_ == nodes_.size() ? NO_NODE : nodes_[cursor_].node;
}

Node Beam::next() {
    const Node node = peek();
    if (node == NO_NODE || calm_ > patience_.most || too_far(nodes_[cursor_].score)) return NO_NODE;
    nodes_[cursor_].marked = 1, ++calm_;
    return node;
}

bool Scratch::visit(Node node) {
    const std::size_t word = node / 64;
    if (word >= visited.size()) visited.resize(std::max(word + 1, 2 * visited.size()));
    const std::uint64_t bit = std::uint64_t{1} << node % 64;
    if (visited[word] & bit) return false;
    visited[word] |= bit;
    touched.push_back(node);
    return true;
}

void Scratch::forget() {
    for (Node node : touched) visited[node / 64] = 0;
    touched.clear();
    if (hidden != NO_NODE) visit(hidden);
}

Graph::Impl::Lent::Lent(const Impl& impl) : impl_(impl) {
    {
        const std::lock_guard<std::mutex> lock(impl.lending);
        if (!impl.idle.empty()) {
            scratch_ = std::move(impl.idle.back());
            impl.idle.pop_back();
        }
    }
    if (!scratch_) scratch_ = std::make_unique<Scratch>(impl.nodes);
    scratch_->compared = 0;
    scratch_->gives_way = false;
    scratch_->hidden = NO_NODE;
}

Graph::Impl::Lent::~Lent() {
    scratch_->forget();
    const std::lock_guard<std::mutex> lock(impl_.lending);
    impl_.idle.push_back(std::move(scratch_));
}

// All lines of a node's links in the lowest layer.
void Graph::Impl::prefetch_links(Node node) const {
    if (node == NO_NODE) return;
    const auto* links = reinterpret_cast<const char*>(nodes.links(node, 0));
    for (std::size_t byte = 0; byte < (1 + 2 * config.M) * sizeof(Word); byte += 64) prefetch(links + byte);
}

// The neighbours of a node not yet visited, into `batch`.
void Graph::Impl::gather(Scratch& s, Node node, unsigned layer) const {
    s.links.resize(2 * config.M);
    const std::size_t n = read_links(nodes.links(node, layer), nodes.most_links(layer), s.links.data());
    for (std::size_t i = 0; i < n; ++i)
        if (s.visit(s.links[i])) s.batch.push_back(s.links[i]);
}

// Compare the nodes of `batch` with the query: into `scores`.
void Graph::Impl::compare_batch(Scratch& s) const {
    const std::size_t n = s.batch.size();
    s.codes.resize(n), s.scales.resize(n), s.scores.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
        s.codes[i] = nodes.codes(s.batch[i]);
        prefetch(&nodes.header(s.batch[i]));
        prefetch_start(s.codes[i], nodes.walked.bytes());
    }
    for (std::size_t i = 0; i < n; ++i) s.scales[i] = nodes.scale(s.batch[i]);
    s.query.score(s.codes.data(), s.scales.data(), n, s.scores.data());
    s.compared += n;
}

// The same, add them to the beam, and empty the batch.
void Graph::Impl::score_batch(Scratch& s) const {
    compare_batch(s);
    for (std::size_t i = 0; i < s.batch.size(); ++i) s.beam.add(s.scores[i], s.batch[i]);
    s.batch.clear();
}

// Greedy from the entry down to `to_layer` + 1 (Algorithm 5, lines 5 to 7); the node to start with in
// `to_layer`.
Node Graph::Impl::descend(Scratch& s, std::uint64_t start, unsigned to_layer) const {
    Node best = static_cast<Node>(start & 0xffffffff) - 1;
    float best_score = score(s, best);
    for (auto layer = static_cast<unsigned>(start >> 32); layer > to_layer; --layer)
        for (bool moved = true; moved;) {
            moved = false;
            s.links.resize(2 * config.M);
            const std::size_t n =
                read_links(nodes.links(best, layer), nodes.most_links(layer), s.links.data());
            s.codes.resize(n), s.scales.resize(n), s.scores.resize(n);
            for (std::size_t i = 0; i < n; ++i) {
                s.codes[i] = nodes.codes(s.links[i]);
                s.scales[i] = nodes.scale(s.links[i]);
            }
            s.query.score(s.codes.data(), s.scales.data(), n, s.scores.data());
            s.compared += n;
            for (std::size_t i = 0; i < n; ++i)
                if (s.scores[i] > best_score) best = s.links[i], best_score = s.scores[i], moved = true;
        }
    return best;
}

// Algorithm 2 in one layer; the beam holds the result.
void Graph::Impl::search_layer(Scratch& s, Span<const Near> entries, std::size_t ef, unsigned layer,
                               Patience patience) const {
    s.forget();
    s.beam.start(ef, patience);
    for (const Near& entry : entries) {
        s.visit(entry.node);
        s.beam.add(entry.score, entry.node);
    }
    walk(s, layer);
}

// Expand what is in the beam, and what comes into it.
void Graph::Impl::walk(Scratch& s, unsigned layer) const {
    for (Node node; (node = s.beam.next()) != NO_NODE;) {
        if (layer == 0) prefetch_links(s.beam.peek());
        gather(s, node, layer);
        score_batch(s);
        if (s.gives_way) give_way();
    }
}

// Where to start in a layer: what a narrow beam finds in the layer above. Where a catalogue falls into
// clusters, a single start may lie in the wrong one.
std::vector<Near> Graph::Impl::starts(Scratch& s, std::uint64_t from, unsigned layer) const {
    const Node start = descend(s, from, std::min(layer + 1, static_cast<unsigned>(from >> 32)));
    const Near nearest{score(s, start), start};
    if (from >> 32 <= layer) return {nearest};
    search_layer(s, {&nearest, 1}, STARTS, layer + 1);
    return s.beam.nodes();
}

void Graph::Impl::search_graph(Scratch& s, std::uint64_t from, std::size_t ef, Patience patience) const {
    const std::vector<Near> entries = starts(s, from, 0);
    search_layer(s, {entries.data(), entries.size()}, ef, 0, patience);
}

// The nodes around the query are expanded nearest first, whether they pass or not, and what passes is kept: a
// search without a filter that goes on until its beam is full of what passes. False if what passes turns out
// to lie elsewhere; the beam has then what passed so far.
template <typename Passes>
bool Graph::Impl::search_around(Scratch& s, Span<const Near> entries, std::size_t ef, Patience patience,
                                double share, Passes passes) const {
    const auto further = [](const Near& a, const Near& b) { return a.score < b.score; };
    s.forget();
    s.seeds.clear();
    s.beam.start(ef, patience);
    std::size_t expanded = 0, passing = 0;
    const auto meet = [&](Near each) {
        if (!s.beam.takes(each.score)) return;
        each.marked = passes(each.node);
        s.seeds.push_back(each);
        std::push_heap(s.seeds.begin(), s.seeds.end(), further);
        if (each.marked) s.beam.add(each.score, each.node);
    };
    const auto elsewhere = [&] {
        const double expected = share * static_cast<double>(expanded);
        return expected >= SURE && static_cast<double>(passing) < ELSEWHERE * expected;
    };
    for (const Near& each : entries) {
        s.visit(each.node);
        meet(each);
    }
    while (!s.seeds.empty()) {
        const Near next = s.seeds.front();
        if (!s.beam.takes(next.score) || s.beam.too_far(next.score)) break;
        if (elsewhere()) return false;
        std::pop_heap(s.seeds.begin(), s.seeds.end(), further);
        s.seeds.pop_back();
        if (!s.seeds.empty()) prefetch_links(s.seeds.front().node);
        ++expanded, passing += next.marked;
        gather(s, next.node, 0);
        compare_batch(s);
        for (std::size_t i = 0; i < s.batch.size(); ++i) meet({s.scores[i], s.batch[i]});
        s.batch.clear();
        if (s.gives_way) give_way();
    }
    return !elsewhere();
}

// With a filter that lets the `strewn` through.
void Graph::Impl::search_strewn(Scratch& s, std::uint64_t from, std::size_t ef, Patience patience,
                                double share) const {
    if (share == 1) return search_graph(s, from, ef, patience);
    const std::vector<Near> entries = starts(s, from, 0);
    search_around(s, {entries.data(), entries.size()}, ef, patience, share,
                  [&](Node node) { return strewn(node, share); });
}

// Around the query first; if what passes lies elsewhere, only nodes that pass are compared, and those that do
// not lend their neighbours instead. The nearest start is in the beam whether it passes or not. False, and
// nothing found, where that is dearer than to compare all that match, and `thorough` does not ask for it.
template <typename Passes>
bool Graph::Impl::search_filtered(Scratch& s, std::uint64_t from, const Plan& plan, Patience patience,
                                  bool thorough, Passes passes) const {
    const std::vector<Near> entries = starts(s, from, 0);
    const double share = share_of(plan.matching);
    const Span<const Near> around{entries.data(), entries.size()};
    if (search_around(s, around, plan.narrow_ef, patience, share, passes)) return true;
    if (!thorough && plan.matching <= WALKED_PER_EF * plan.ef) return false;
    s.seeds = s.beam.nodes();
    s.seeds.push_back(entries.front());
    s.forget();
    patience.close = Patience{}.close;  // elsewhere, a few do not lead far
    s.beam.start(plan.ef, patience);
    for (const Near& each : s.seeds)
        if (s.visit(each.node)) s.beam.add(each.score, each.node);
    for (Node node; (node = s.beam.next()) != NO_NODE;) {
        s.links.resize(2 * config.M);
        std::size_t n = read_links(nodes.links(node, 0), 2 * config.M, s.links.data());
        s.skipped.clear();
        for (std::size_t i = 0; i < n; ++i)
            if (s.visit(s.links[i])) (passes(s.links[i]) ? s.batch : s.skipped).push_back(s.links[i]);
        for (Node over : s.skipped) prefetch(nodes.links(over, 0));
        for (Node over : s.skipped) {
            if (s.batch.size() >= config.M) break;
            n = read_links(nodes.links(over, 0), 2 * config.M, s.links.data());
            for (std::size_t i = 0; i < n; ++i)
                if (passes(s.links[i]) && s.visit(s.links[i])) s.batch.push_back(s.links[i]);
        }
        score_batch(s);
    }
    return true;
}

// Every row of the filter, or every node, compared: the k nearest that pass. Where there are codes, by them:
// they are off by no more than is known, and what may then be among the k is scored by its vectors.
template <typename Passes>
void Graph::Impl::exact(Scratch& s, const float* query, std::size_t k, const RowSet::Words* filter,
                        Passes passes, std::vector<Near>& found) const {
    const float margin = nodes.coarse() ? 2 * s.query.error(query, nodes.reach()) : 0;
    float least = -std::numeric_limits<float>::infinity();
    const auto drop = [&] {  // all that tie with the k-th stay: their rows decide
        if (found.size() <= k) return;
        std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(k - 1), found.end(),
                         nearer);
        least = found[k - 1].score - margin;
        found.erase(
            std::remove_if(found.begin(), found.end(), [&](const Near& each) { return each.score < least; }),
            found.end());
    };
    std::size_t most = 2 * k + AT_ONCE;
    const auto score_first = [&](std::size_t n) {
        s.scores.resize(n);
        s.query.score(s.codes.data(), s.scales.data(), n, s.scores.data());
        s.compared += n;
        for (std::size_t i = 0; i < n; ++i)
            if (s.scores[i] >= least) found.push_back({s.scores[i], s.order[i]});
        if (found.size() >= most) drop(), most = 2 * found.size() + AT_ONCE;
        const auto end = static_cast<std::ptrdiff_t>(n);
        s.order.erase(s.order.begin(), s.order.begin() + end);
        s.codes.erase(s.codes.begin(), s.codes.begin() + end);
        s.scales.erase(s.scales.begin(), s.scales.begin() + end);
    };
    // While the codes of some nodes are fetched, those of the nodes before are scored.
    const auto take = [&] {
        const std::size_t fetched = s.order.size();
        for (Node node : s.batch)
            if (passes(node)) {
                s.order.push_back(node);
                s.codes.push_back(nodes.codes(node));
                s.scales.push_back(nodes.scale(node));
                prefetch_start(s.codes.back(), nodes.walked.bytes());
            }
        s.batch.clear();
        score_first(fetched);
    };
    s.order.clear(), s.codes.clear(), s.scales.clear();
    const auto offer = [&](Node node) {
        if (node == NO_NODE) return;
        prefetch(&nodes.header(node));
        s.batch.push_back(node);
        if (s.batch.size() == AT_ONCE) take();
    };
    if (filter)
        filter->for_each([&](Row row) { offer(node_of(row)); });
    else
        for (Node node = 0, n = nodes.count.load(std::memory_order_acquire); node < n; ++node) offer(node);
    take();
    score_first(s.order.size());
    drop();
    if (nodes.coarse()) score_exactly(s, {found.data(), found.size()});
}

// What the walk found, and its twins, nearest first: all, or so many as are enough.
template <typename Visible>
void Graph::Impl::take_twins(Scratch& s, std::size_t enough, Visible visible,
                             std::vector<Near>& found) const {
    bool any = false;
    for (const Near& each : s.beam.nodes()) {
        if (found.size() >= enough) break;
        if (nodes.twin(each.node) == each.node) {
            if (visible(each.node)) found.push_back(each);
            continue;
        }
        if (!any) s.forget();  // the walk may have met several of a ring, since one was removed
        any = true;
        const std::size_t most = found.size() + std::max(enough, MOST_TWINS);
        any_twin(each.node, [&](Node twin) {
            if (s.visit(twin) && visible(twin)) found.push_back({score(s, twin), twin});
            return found.size() == most;
        });
    }
    if (any) std::sort(found.begin(), found.end(), nearer);
}

// The k best, in order; equal ones by lower row.
void Graph::Impl::keep_best(std::vector<Near>& found, std::size_t k) const {
    k = std::min(k, found.size());
    std::partial_sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(k), found.end(),
                      [&](const Near& a, const Near& b) {
                          return a.score != b.score ? a.score > b.score
                                                    : nodes.header(a.node).row < nodes.header(b.node).row;
                      });
    found.resize(k);
}

// What a walk by codes found, nearest first by them, scored by the vectors themselves: twice k, and on for as
// long as k more, with all whose codes tie, bring a better one. What is not scored is dropped.
void Graph::Impl::score_anew(Scratch& s, std::size_t k, std::vector<Near>& found) const {
    const std::size_t n = found.size(), some = std::max<std::size_t>(k, LEAST_RESCORED);
    float worst = -std::numeric_limits<float>::infinity();
    std::size_t first = 0, last = 0;
    for (bool better = true; better && last < n; first = last) {
        last = std::min(n, first ? first + some : 2 * some);
        while (last < n && found[last].score == found[last - 1].score) ++last;
        score_exactly(s, {found.data() + first, last - first});
        better = std::any_of(found.begin() + static_cast<std::ptrdiff_t>(first),
                             found.begin() + static_cast<std::ptrdiff_t>(last),
                             [&](const Near& each) { return each.score > worst; });
        const auto kth = found.begin() + static_cast<std::ptrdiff_t>(std::min(k, last) - 1);
        std::nth_element(found.begin(), kth, found.begin() + static_cast<std::ptrdiff_t>(last), nearer);
        worst = kth->score;
    }
    found.resize(last);
}

void Graph::Impl::score_exactly(Scratch& s, Span<Near> those) const {
    const std::size_t n = those.size();
    s.codes.resize(n), s.scales.assign(n, {}), s.scores.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
        s.codes[i] = nodes.vector(those[i].node);
        prefetch_start(s.codes[i], nodes.codec.bytes());
    }
    s.exact.score(s.codes.data(), s.scales.data(), n, s.scores.data());
    for (std::size_t i = 0; i < n; ++i) those[i].score = s.scores[i];
}

void Graph::Impl::give(Row row, Node node) {
    node_by_row.at(row)->store(node + 1, std::memory_order_release);
    given.insert(row);
    if (row > last_given) last_given = row;
}

Node Graph::Impl::node_of(Row row) const {
    const auto* place = node_by_row.find(row);
    return place ? place->load(std::memory_order_acquire) - 1 : NO_NODE;
}

// How many rows a search may find.
std::size_t Graph::Impl::matching(const SearchOptions& options) const {
    const std::size_t all = live.load();
    if (!options.filter) return all;
    // A filter may let through rows that are gone, or that this graph never had.
    if (static_cast<double>(all) < MOST_GIVEN * static_cast<double>(last_given))
        return std::min(all, options.filter->count_shared(given));
    return std::min(all, options.matching != SIZE_MAX ? options.matching : options.filter->count());
}

// Of the live rows; at least something, so that it can be divided by.
double Graph::Impl::share_of(std::size_t matching) const {
    const auto all = static_cast<double>(std::max<std::size_t>(1, live.load()));
    return std::clamp(static_cast<double>(matching) / all, 1 / all, 1.0);
}

Plan Graph::Impl::plan(std::size_t k, const SearchOptions& options, std::size_t matching,
                       const WalkLimits& limits) const {
    Plan plan;
    plan.matching = matching;
    const double share = share_of(matching);
    const auto unfiltered = static_cast<double>(limits.breadths[0].any);
    const double large = std::max(1.0, std::cbrt(static_cast<double>(live.load()) / LARGE));
    if (options.ef) {
        plan.ef = plan.narrow_ef = plan.close_ef = std::max(options.ef, k);
    } else if (!options.filter) {
        const std::size_t least =
            std::max(std::min(ENOUGH_EF, LEAST_EF * std::max<std::size_t>(k, 10) / 10), 2 * k);
        plan.ef = plan.narrow_ef = std::max(least, limits.breadths[0].any);
        plan.close_ef = std::max(least, limits.breadths[0].close);
    } else {
        const double sparse = std::clamp(1 + SPARSE * (SPARSE_SHARE / share - 1), 1.0, SPARSE_MOST);
        const auto narrow = [&](std::size_t Breadth::* of) {
            const double each = std::max(NARROW, sparse * limits.breadth(share, of) / 10);
            return static_cast<std::size_t>(each * static_cast<double>(std::max<std::size_t>(k, 10)));
        };
        plan.narrow_ef = narrow(&Breadth::any);
        plan.close_ef = narrow(&Breadth::close);
        const double thin = std::min(std::sqrt(large) * THIN_SHARE / share, 4.0),
                     dense = std::min(DENSE_SHARE / share, 1.0);
        const double wide = std::max(2 * unfiltered, large * large * WIDE_EF * std::max(thin, dense));
        plan.ef = std::max(static_cast<std::size_t>(wide), 2 * k);
    }
    const std::size_t ef = options.filter ? plan.narrow_ef : plan.ef;
    const double cost = std::max(EXACT, std::sqrt(large) * static_cast<double>(COMPARED_PER_EF * ef) / share);
    if (options.strategy)
        plan.strategy = *options.strategy;
    else if (static_cast<double>(matching) <= cost || 2 * plan.ef >= matching)
        plan.strategy = Strategy::exact;
    else
        plan.strategy = options.filter ? Strategy::filtered_graph : Strategy::graph;
    return plan;
}

Hits Graph::Impl::search(Span<const float> query, std::size_t k, const SearchOptions& options,
                         std::size_t matching) const {
    if (query.size() != config.dim)
        throw std::invalid_argument("the query has " + std::to_string(query.size()) +
                                    " components; expected " + std::to_string(config.dim));
    if (k == 0) throw std::invalid_argument("k is 0; expected at least 1");
    note_search();
    const auto guard = readers.enter();
    const Step now = step.load(std::memory_order_acquire);
    const auto filter = options.filter ? options.filter->words() : nullptr;
    const std::size_t all = live.load();
    k = std::min(k, std::max<std::size_t>(all, 1));
    Hits hits;
    const WalkLimits& limits = *walk_limits.load();
    hits.plan = plan(k, options, matching, limits);
    const std::uint64_t from = entry.load(std::memory_order_acquire);
    if (from == 0) return hits;
    Lent s(*this);
    s->query.set(query.data());
    if (nodes.coarse()) s->exact.set(query.data());
    std::vector<Near> found;
    const auto visible = [&](Node node) {
        return nodes.visible(node, now) && (!filter || filter->contains(nodes.header(node).row));
    };
    const auto some_visible = [&](Node node) { return any_twin(node, visible); };
    const bool thorough = options.strategy != nullptr;
    Patience patience, filtered;  // a breadth that is given is walked whole
    if (!options.ef) {
        patience = {std::max(2 * k, LEAST_CALM), hits.plan.ef / CALM, limits.slack, limits.close,
                    hits.plan.close_ef};
        filtered = {std::max(k, LEAST_KEPT), SIZE_MAX, limits.slack, limits.close, hits.plan.close_ef};
    }
    if (hits.plan.strategy != Strategy::exact) {
        if (hits.plan.strategy == Strategy::graph) {
            search_graph(*s, from, hits.plan.ef, patience);
            // What is invisible tells of no end.
            if (!options.ef && !shows(s->beam, k, patience.top, some_visible)) {
                s->beam.set_patience({});
                walk(*s, 0);
            }
        } else if (!search_filtered(*s, from, hits.plan, filtered, thorough, some_visible))
            hits.plan.strategy = Strategy::exact;
        take_twins(*s, std::max(hits.plan.ef, 2 * k), visible, found);
    }
    // Too few: removed nodes filled the beam, or the walk reached only some of what matches.
    if (hits.plan.strategy == Strategy::graph && found.size() < std::min(k, all)) {
        hits.plan.strategy = Strategy::filtered_graph;
        found.clear();
        search_filtered(*s, from, hits.plan, filtered, true, some_visible);
        take_twins(*s, std::max(hits.plan.ef, 2 * k), visible, found);
    }
    if (hits.plan.strategy == Strategy::exact ||
        (!options.strategy && found.size() < std::min(k, matching))) {
        hits.plan.strategy = Strategy::exact, hits.plan.ef = 0;
        found.clear();
        exact(*s, query.data(), k, filter.get(), [&](Node node) { return nodes.visible(node, now); }, found);
    }
    if (nodes.coarse() && hits.plan.strategy != Strategy::exact) score_anew(*s, k, found);
    keep_best(found, k);
    for (const Near& each : found) {
        hits.rows.push_back(nodes.header(each.node).row);
        hits.scores.push_back(each.score);
    }
    hits.plan.compared = s->compared;
    return hits;
}

}  // namespace uniecs
