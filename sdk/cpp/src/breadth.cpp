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
// 0.95 and a margin, by WalkLimits::SHARES; for vectors of the catalogue, and for such as strayed. Where few
// pass a little more takes far broader walks. Less where a thorough walk finds hardly more.
constexpr double RECALL[][2] = {{0.98, 0.98}, {0.985, 0.98}, {0.965, 0.925}}, AS_GOOD = 0.99;
// The breadths of thorough walks, which find nearly all that any does.
constexpr std::size_t THOROUGH[] = {600, 300, 250};
// With a filter, where all that passes is compared, every so many of the queries.
constexpr std::size_t FILTERED_STEP = 2;
constexpr std::size_t AT_ONCE = 256;  // vectors that stay in the cache while the queries take turns
// This part of the vectors of the catalogue has its ten nearest close by.
constexpr double CLOSE = 0.95;
// The last one goes untried.
constexpr std::size_t BREADTHS[] = {10, 12, 14,  17,  20,  24,  29,  35,  42,  50,  60,
                                    72, 86, 104, 125, 150, 180, 216, 260, 310, 370, 1000};
// How many times as far off as the k-th nearest a walk goes on, and what part it has to find of what it finds
// without that. The last one goes untried.
constexpr float UNLIMITED = std::numeric_limits<float>::infinity();
constexpr float SLACKS[] = {1.15f, 1.3f, 2.0f, UNLIMITED};
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

// The squared distance of the last of what was found.
float last(const std::vector<float>& scores) { return scores.empty() ? UNLIMITED : 2 - 2 * scores.back(); }

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

double WalkLimits::breadth(double share, std::size_t Breadth::* of) const {
    std::size_t i = 1;
    while (i + 1 < breadths.size() && share < SHARES[i]) ++i;
    const double part = std::log(SHARES[i - 1] / share) / std::log(SHARES[i - 1] / SHARES[i]);
    const auto above = static_cast<double>(breadths[i - 1].*of), below = static_cast<double>(breadths[i].*of);
    return above + std::clamp(part, 0.0, 1.0) * (below - above);
}

// Queries made of a graph's own vectors, and what walks find for them: first of each vector as if the graph
// did not hold it, then of each as it strayed.
class Graph::Impl::Probe {
  public:
    using Scores = std::vector<std::vector<float>>;  // of the ten nearest, by query
    using Queries = std::vector<std::size_t>;

    Probe(const Impl& graph, std::vector<Node> sample, unsigned threads)
        : graph_(graph), sample_(std::move(sample)), strayed_(graph.stray(sample_)), threads_(threads) {}

    // Every `step`-th.
    Queries queries(std::size_t step) const {
        Queries those;
        for (std::size_t i = 0; i < 2 * sample_.size(); i += step) those.push_back(i);
        return those;
    }
    bool strays(std::size_t query) const { return query >= sample_.size(); }

    Scores nearest(const Queries& those, std::size_t ef, double share, float times) const {
        Scores scores(2 * sample_.size());
        in_parallel(those.size(), threads_, [&](std::size_t at) {
            const std::size_t i = those[at];
            Lent s(graph_);
            s->gives_way = true;
            set(s->query, i);
            s->hidden = hidden(i);
            graph_.search_strewn(*s, graph_.entry.load(std::memory_order_acquire), ef,
                                 {NEAREST, SIZE_MAX, square(times)}, share);
            for (const Near& each : s->beam.nodes())
                if (scores[i].size() < NEAREST) scores[i].push_back(each.score);
        });
        return scores;
    }

    // Of all that such a walk may find.
    Scores exact(const Queries& those, double share) const {
        std::vector<Node> passing;
        for (Node node = 0, count = graph_.nodes.count.load(); node < count; ++node)
            if (strewn(node, share) && graph_.nodes.leads_for_good(node)) passing.push_back(node);
        Scores scores(2 * sample_.size());
        in_parallel(threads_, threads_, [&](std::size_t part) {
            std::vector<Query> queries;
            queries.reserve(those.size());  // what is set may point into itself
            for (std::size_t at = part; at < those.size(); at += threads_) {
                queries.emplace_back(graph_.nodes.walked);
                set(queries.back(), those[at]);
            }
            std::vector<const std::byte*> codes;
            std::vector<Scale> scales;
            std::vector<float> found;
            for (std::size_t start = 0; start < passing.size(); start += AT_ONCE) {
                const Span<const Node> some{passing.data() + start,
                                            std::min(AT_ONCE, passing.size() - start)};
                codes.clear(), scales.clear(), found.resize(some.size());
                for (Node node : some)
                    codes.push_back(graph_.nodes.codes(node)), scales.push_back(graph_.nodes.scale(node));
                for (std::size_t i = 0; i < queries.size(); ++i) {
                    give_way();
                    queries[i].score(codes.data(), scales.data(), some.size(), found.data());
                    const std::size_t each = those[part + i * threads_];
                    for (std::size_t j = 0; j < some.size(); ++j)
                        if (some[j] != hidden(each)) keep(scores[each], found[j]);
                }
            }
        });
        return scores;
    }

    // What walks for a share of the nodes should find, and what a thorough one does.
    struct Trial {
        std::size_t kind;  // of WalkLimits::SHARES
        Scores wanted, thorough;
    };

    // Whether a walk finds these parts of what it should, or nearly what the thorough one does.
    bool finds(const Trial& trial, const Queries& those, std::size_t ef, float times,
               const double (&recall)[2]) const {
        const Scores scores = nearest(those, ef, WalkLimits::SHARES[trial.kind], times);
        double found[2] = {}, most[2] = {}, all[2] = {};
        for (std::size_t i : those) {
            const float least = trial.wanted[i].empty() ? -UNLIMITED : trial.wanted[i].back();
            all[strays(i)] += static_cast<double>(trial.wanted[i].size());
            for (float score : scores[i]) found[strays(i)] += score >= least;
            for (float score : trial.thorough[i]) most[strays(i)] += score >= least;
        }
        const auto enough = [&](int kind) {
            return found[kind] >= std::min(recall[kind] * all[kind], AS_GOOD * most[kind]);
        };
        return enough(0) && enough(1);
    }

    // The least breadth that does, below `end`; else that.
    const std::size_t* least(const Trial& trial, const Queries& those, const std::size_t* end) const {
        return std::partition_point(std::begin(BREADTHS), end, [&](std::size_t ef) {
            return !finds(trial, those, ef, UNLIMITED, RECALL[trial.kind]);
        });
    }

  private:
    void set(Query& query, std::size_t i) const {
        if (strays(i))
            query.set(strayed_.data() + (i - sample_.size()) * graph_.config.dim);
        else
            query.set_stored(graph_.nodes.codes(sample_[i]), graph_.nodes.scale(sample_[i]));
    }
    Node hidden(std::size_t i) const { return strays(i) ? NO_NODE : sample_[i]; }
    // Among the best, in order.
    static void keep(std::vector<float>& best, float score) {
        if (best.size() == NEAREST && score <= best.back()) return;
        best.insert(std::upper_bound(best.begin(), best.end(), score, std::greater<>()), score);
        if (best.size() > NEAREST) best.pop_back();
    }

    const Impl& graph_;
    const std::vector<Node> sample_;
    const std::vector<float> strayed_;
    const unsigned threads_;
};

// After `changes` nodes were added or removed.
void Graph::Impl::measure_walks(std::size_t changes, unsigned threads) {
    changed += changes;
    if (live < LEAST_MEASURED || changed < live / CHANGED_PART) return;
    changed = 0;
    std::vector<Node> sample = sample_nodes();
    if (sample.empty()) return;
    const Probe probe(*this, std::move(sample), threads);
    WalkLimits limits;
    for (std::size_t i = 0; i < limits.breadths.size(); ++i) {
        const double share = WalkLimits::SHARES[i];
        if (share * static_cast<double>(live) < LEAST_MEASURED) {
            limits.breadths[i] = limits.breadths[i - 1];
            continue;
        }
        const auto all = probe.queries(i == 0 ? 1 : FILTERED_STEP);
        const auto thorough = probe.nearest(all, THOROUGH[i], share, UNLIMITED);
        const Probe::Trial trial{i, i == 0 ? thorough : probe.exact(all, share), thorough};
        if (i == 0) {
            std::vector<float> distances;
            for (std::size_t each : all)
                if (!probe.strays(each)) distances.push_back(last(thorough[each]));
            limits.close = quantile(std::move(distances), CLOSE);
            limits.slack = square(*std::find_if(std::begin(SLACKS), std::end(SLACKS) - 1, [&](float times) {
                return probe.finds(trial, all, THOROUGH[i], times, KEPT);
            }));
        }
        Probe::Queries near;
        std::copy_if(all.begin(), all.end(), std::back_inserter(near),
                     [&](std::size_t each) { return last(trial.wanted[each]) <= limits.close; });
        const std::size_t* const enough = probe.least(trial, all, std::end(BREADTHS) - 1);
        limits.breadths[i] = {*enough, *probe.least(trial, near, enough)};
    }
    auto replacing = std::make_unique<const WalkLimits>(limits);
    walk_limits = replacing.get();
    readers.wait_for_all();  // some may still go by the last one
    measured = std::move(replacing);
}

}  // namespace uniecs
