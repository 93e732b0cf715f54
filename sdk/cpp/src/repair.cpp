#include <algorithm>
#include <unordered_set>

#include "impl.hpp"

namespace uniecs {

namespace {

// A node that loses more than this share of its links finds new ones by a search of its own.
constexpr double SEARCH_SHARE = 0.2;

}  // namespace

// FreshDiskANN's Algorithm 4: nodes that link to removed ones link to what those lead to, then the places are
// free.
void Graph::Impl::repair(unsigned threads) {
    std::vector<Node> gone;
    const Node count = nodes.count.load();
    for (Node node = 0; node < count; ++node) {
        const Header& header = nodes.header(node);
        if (header.removed.load() != NEVER && node_of(header.row) == node) gone.push_back(node);
    }
    if (gone.empty()) return;
    choose_entry();
    in_parallel(count, threads, [&](std::size_t node) {
        if (nodes.leads_for_good(static_cast<Node>(node))) {
            Lent s(*this);
            repair_node(*s, static_cast<Node>(node));
        }
        give_way();
    });
    for (Node node : gone) node_by_row.at(nodes.header(node).row)->store(0, std::memory_order_release);
    readers.wait_for_all();  // searches that came by an old link may still be there
    if (leave_rings()) readers.wait_for_all();
    free.reserve(free.size() + gone.size());
    for (Node node : gone) free.push_back(node);
    removed -= gone.size();
}

void Graph::Impl::choose_entry() {
    Node best = NO_NODE;
    for (Node node = 0, n = nodes.count.load(); node < n; ++node)
        if (nodes.leads_for_good(node) &&
            (best == NO_NODE || nodes.tower(node).layers > nodes.tower(best).layers))
            best = node;
    set_entry(best);
}

void Graph::Impl::repair_node(Scratch& s, Node node) {
    for (unsigned layer = 0; layer <= nodes.tower(node).layers; ++layer) {
        const std::size_t most = nodes.most_links(layer);
        std::vector<Node> links(most), onward(most), kept;
        {  // else one that another thread moves meanwhile would be missed, and lead to a place used again
            const NodeLock lock(nodes.tower(node).lock);
            links.resize(read_links(nodes.links(node, layer), most, links.data()));
        }
        std::unordered_set<Node> near;
        std::size_t lost = 0;
        for (Node link : links) {
            if (nodes.linked_for_good(link)) {
                near.insert(link);
                continue;
            }
            ++lost;
            const std::size_t n = read_links(nodes.links(link, layer), most, onward.data());
            for (std::size_t i = 0; i < n; ++i)
                if (onward[i] != node && nodes.linked_for_good(onward[i])) near.insert(onward[i]);
        }
        if (lost == 0) continue;
        s.query.set_stored(nodes.codes(node), nodes.scale(node));
        const bool bereft =
            layer > 0 || static_cast<double>(lost) > SEARCH_SHARE * static_cast<double>(links.size());
        if (bereft && entry_node() != node && layer <= entry_layers()) {
            const std::vector<Near> entries = starts(s, entry.load(), layer);
            search_layer(s, {entries.data(), entries.size()}, config.ef_construction, layer);
            for (const Near& each : s.beam.nodes())
                if (each.node != node && nodes.linked_for_good(each.node)) near.insert(each.node);
        }
        std::vector<Near> candidates;
        for (Node each : near) candidates.push_back({score(s, each), each});
        std::sort(candidates.begin(), candidates.end(), [](const Near& a, const Near& b) {
            return a.score != b.score ? a.score > b.score : a.node < b.node;
        });
        select(s, candidates, most, kept);
        set_links(node, layer, kept);
        // Those that it found anew lead back to it: it has lost links to itself as well.
        for (Node each : kept)
            if (std::find(links.begin(), links.end(), each) == links.end()) link_back(s, each, node, layer);
    }
}

}  // namespace uniecs
