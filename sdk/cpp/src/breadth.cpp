// How broad a walk the catalogue needs: a hard one, whose vectors spread over many dimensions, several times
// what an easy one does. Measured on the graph, with its own vectors as queries of which it does not know.
#include "impl.hpp"

namespace uniecs {

namespace {

constexpr std::size_t LEAST_MEASURED = 2000;  // so few are compared one by one
constexpr std::size_t SAMPLE = 200, NEAREST = 10;
constexpr double RECALL =
    0.98;  // of what a thorough walk finds: 0.95 and a margin, for queries unlike products
constexpr std::size_t THOROUGH = 1000;  // that walk's breadth
constexpr std::size_t BREADTHS[] = {10, 12,  14,  17,  20,  24,  29,  35,  42,  50,  60, 72,
                                    86, 104, 125, 150, 180, 216, 260, 310, 370, 440, 500};
// Where fewer changed, the last measurement stands.
constexpr std::size_t CHANGED_PART = 4;

}  // namespace

// After `changes` nodes were added or removed.
void Graph::Impl::measure_breadth(std::size_t changes) {
    changed += changes;
    if (live < LEAST_MEASURED || changed < live / CHANGED_PART) return;
    changed = 0;
    std::vector<Node> sample;  // in the lowest layer alone: nothing above leads to them
    const Node count = nodes.count.load(), stride = std::max<Node>(1, count / SAMPLE);
    for (Node node = 0; node < count; node += stride) {
        const Header& header = nodes.header(node);
        if (nodes.linked_for_good(node) && header.leads && header.layers == 0) sample.push_back(node);
    }
    Lent s(*this);
    s->gives_way = true;
    const auto scores = [&](Node node, std::size_t ef) {
        s->query.set_stored(nodes.codes(node), nodes.scale(node));
        s->hidden = node;
        search_graph(*s, entry.load(std::memory_order_acquire), ef);
        std::vector<float> found;
        for (const Near& each : s->beam.nodes())
            if (found.size() < NEAREST) found.push_back(each.score);
        return found;
    };
    std::size_t all = 0;
    std::vector<float> last;  // of each one's nearest
    for (Node node : sample) {
        const std::vector<float> nearest = scores(node, THOROUGH);
        all += nearest.size();
        last.push_back(nearest.back());
    }
    const auto falls_short = [&](std::size_t ef) {
        std::size_t found = 0;
        for (std::size_t i = 0; i < sample.size(); ++i)
            for (float score : scores(sample[i], ef)) found += score >= last[i];
        return static_cast<double>(found) < RECALL * static_cast<double>(all);
    };
    breadth = *std::partition_point(std::begin(BREADTHS), std::end(BREADTHS) - 1, falls_short);
}

}  // namespace uniecs
