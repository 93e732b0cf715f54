// How broad a walk the catalogue needs, and how far it has to go: a hard one, whose vectors spread over many
// dimensions, several times what an easy one does. Measured on the graph, by queries made of its own vectors.
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>

#include "impl.hpp"

namespace uniecs {

namespace {

constexpr std::size_t LEAST_MEASURED = 2000;  // so few are compared one by one
constexpr std::size_t SAMPLE = 100, NEAREST = 10;
// Of what a thorough walk finds: 0.95 and a margin; for vectors of the catalogue, and for such as strayed.
constexpr double RECALL[] = {0.98, 0.97};
constexpr std::size_t THOROUGH = 600;  // that walk's breadth
// This part of the vectors of the catalogue has its ten nearest close by.
constexpr double CLOSE = 0.95;
// The last one goes untried.
constexpr std::size_t BREADTHS[] = {10, 12, 14,  17,  20,  24,  29,  35,  42,  50,  60,
                                    72, 86, 104, 125, 150, 180, 216, 260, 310, 370, 1000};
// How many times as far off as the k-th nearest a walk goes on, and what part it has to find of what it finds
// without that. The last one goes untried.
constexpr float SLACKS[] = {1.15f, 1.3f, 2.0f, std::numeric_limits<float>::infinity()};
constexpr double KEPT[] = {0.99, 0.99};
// Where fewer changed, the last measurement stands.
constexpr std::size_t CHANGED_PART = 2;

float square(float value) { return value * value; }

// What `part` of the values do not exceed.
float quantile(std::vector<float> values, double part) {
    const auto nth =
        values.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1));
    std::nth_element(values.begin(), nth, values.end());
    return *nth;
}

}  // namespace

// Nodes in the lowest layer alone: nothing above leads to them.
std::vector<Node> Graph::Impl::sample_nodes() const {
    std::vector<Node> sample;
    const Node count = nodes.count.load(), stride = std::max<Node>(1, count / SAMPLE);
    for (Node node = 0; node < count; node += stride)
        if (nodes.leads_for_good(node) && nodes.tower(node).layers == 0) sample.push_back(node);
    return sample;
}

// Vectors of these nodes, one after the other, each with noise as long as it is from the centre, and of
// length 1 again: queries are not products.
std::vector<float> Graph::Impl::stray(const std::vector<Node>& from) const {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> made(from.size() * config.dim);
    for (std::size_t i = 0; i < from.size(); ++i) {
        float* one = made.data() + i * config.dim;
        nodes.codec.decode(nodes.vector(from[i]), nodes.scale(from[i]), one);
        const float distance = nodes.squared_distance(one, nodes.centre().data());
        const float noise = std::sqrt(distance / static_cast<float>(config.dim));
        float length = 0;
        for (std::size_t d = 0; d < config.dim; ++d)
            one[d] += noise * normal(random), length += square(one[d]);
        for (std::size_t d = 0; d < config.dim; ++d) one[d] /= std::sqrt(length);
    }
    return made;
}

// After `changes` nodes were added or removed.
void Graph::Impl::measure_walks(std::size_t changes, unsigned threads) {
    changed += changes;
    if (live < LEAST_MEASURED || changed < live / CHANGED_PART) return;
    changed = 0;
    const std::vector<Node> sample = sample_nodes();
    if (sample.empty()) return;
    const std::vector<float> strayed = stray(sample);
    // Of each vector as if the graph did not hold it, then of each as it strayed.
    const auto nearest = [&](const std::vector<std::size_t>& those, std::size_t ef, float times) {
        std::vector<std::vector<float>> scores(2 * sample.size());
        in_parallel(those.size(), threads, [&](std::size_t at) {
            const std::size_t i = those[at];
            Lent s(*this);
            s->gives_way = true;
            const Node node = sample[i % sample.size()];
            if (i < sample.size())
                s->query.set_stored(nodes.codes(node), nodes.scale(node)), s->hidden = node;
            else
                s->query.set(strayed.data() + (i - sample.size()) * config.dim);
            search_graph(*s, entry.load(std::memory_order_acquire), ef, {NEAREST, SIZE_MAX, square(times)});
            for (const Near& each : s->beam.nodes())
                if (scores[i].size() < NEAREST) scores[i].push_back(each.score);
        });
        return scores;
    };
    const float unlimited = *(std::end(SLACKS) - 1);
    std::vector<std::size_t> all(2 * sample.size()), near;
    std::iota(all.begin(), all.end(), 0);
    const auto wanted = nearest(all, THOROUGH, unlimited);
    const auto finds = [&](const std::vector<std::size_t>& those, std::size_t ef, float times,
                           const double (&recall)[2]) {
        const auto scores = nearest(those, ef, times);
        double found[2] = {}, most[2] = {};
        for (std::size_t i : those) {
            const std::size_t kind = i / sample.size();
            most[kind] += static_cast<double>(wanted[i].size());
            for (float score : scores[i]) found[kind] += score >= wanted[i].back();
        }
        return found[0] >= recall[0] * most[0] && found[1] >= recall[1] * most[1];
    };
    const auto least = [&](const std::vector<std::size_t>& those, const std::size_t* end) {
        return std::partition_point(std::begin(BREADTHS), end,
                                    [&](std::size_t ef) { return !finds(those, ef, unlimited, RECALL); });
    };
    const std::size_t* const enough = least(all, std::end(BREADTHS) - 1);
    const auto last = [&](std::size_t i) {
        return wanted[i].empty() ? std::numeric_limits<float>::infinity() : 2 - 2 * wanted[i].back();
    };
    std::vector<float> distances(sample.size());
    for (std::size_t i = 0; i < sample.size(); ++i) distances[i] = last(i);
    WalkLimits limits;
    limits.breadth = *enough;
    limits.close = quantile(distances, CLOSE);
    std::copy_if(all.begin(), all.end(), std::back_inserter(near),
                 [&](std::size_t i) { return last(i) <= limits.close; });
    limits.close_breadth = *least(near, enough);
    limits.slack = square(*std::find_if(std::begin(SLACKS), std::end(SLACKS) - 1,
                                        [&](float times) { return finds(all, THOROUGH, times, KEPT); }));
    auto replacing = std::make_unique<const WalkLimits>(limits);
    walk_limits = replacing.get();
    readers.wait_for_all();  // some may still go by the last one
    measured = std::move(replacing);
}

}  // namespace uniecs
