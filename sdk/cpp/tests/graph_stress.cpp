// Searches on several threads while one changes, repairs and saves the graph; built with ThreadSanitizer in
// CI.
//
// Every vector says which generation of its product it belongs to, and each product is replaced in one
// `apply`: a search must find each product once, in a generation that was current while it ran, and never a
// deleted one.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "uniecs/graph.hpp"

namespace {

using uniecs::Graph;
using uniecs::Row;

constexpr std::size_t DIM = 32, PRODUCTS = 400;
std::atomic<bool> failed{false};

void fail(const std::string& what) {
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    failed = true;
}

std::vector<float> unit_vectors(std::mt19937& random, std::size_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> made(n * DIM);
    for (std::size_t i = 0; i < n; ++i) {
        float square = 0;
        for (std::size_t d = 0; d < DIM; ++d)
            square += (made[i * DIM + d] = normal(random)) * made[i * DIM + d];
        for (std::size_t d = 0; d < DIM; ++d) made[i * DIM + d] /= std::sqrt(square);
    }
    return made;
}

float length_of(const std::vector<float>& vector) {
    return std::sqrt(std::inner_product(vector.begin(), vector.end(), vector.begin(), 0.0f));
}

// Of the products, a quarter lies at one place in all generations, and a quarter at ten places.
std::vector<float> vectors_of_products(std::mt19937& random) {
    std::mt19937 fixed(0);
    const std::vector<float> place = unit_vectors(fixed, 1);
    std::vector<float> made = unit_vectors(random, PRODUCTS);
    for (std::size_t p = 0; p < PRODUCTS; ++p) {
        float* one = made.data() + p * DIM;
        if (p % 4 == 0) std::copy_n(place.data(), DIM, one);
        if (p % 4 == 1) std::copy_n(made.data() + p % 40 * DIM, DIM, one);
    }
    return made;
}

// Row r of generation g of product p is g * PRODUCTS + p + 1.
std::size_t product_of(Row row) { return (row - 1) % PRODUCTS; }
std::size_t generation_of(Row row) { return (row - 1) / PRODUCTS; }

void searches(const Graph& graph, const std::atomic<std::size_t>& started,
              const std::atomic<std::size_t>& finished, const std::atomic<bool>& stop, unsigned seed,
              uniecs::Storage) {
    std::mt19937 random(seed);
    std::vector<Row> even;
    for (Row row = 2; row < 100 * PRODUCTS; row += 2) even.push_back(row);
    const uniecs::RowSet filter{uniecs::Span<const Row>(even)};
    const uniecs::Strategy strategies[] = {uniecs::Strategy::graph, uniecs::Strategy::filtered_graph,
                                           uniecs::Strategy::exact};
    for (std::size_t turn = 0; !stop; ++turn) {
        const auto query = unit_vectors(random, 1);
        uniecs::SearchOptions options;
        options.strategy = turn % 4 == 3 ? nullptr : &strategies[turn % 4];
        options.filter = turn % 5 == 0 ? &filter : nullptr;
        const std::size_t oldest = finished.load();
        const uniecs::Hits hits = graph.search(query, turn % 7 == 0 ? PRODUCTS : 20, options);
        const std::size_t newest = started.load();
        std::set<std::size_t> seen;
        std::set<std::size_t> generations;
        for (std::size_t i = 0; i < hits.rows.size(); ++i) {
            const Row row = hits.rows[i];
            if (!seen.insert(product_of(row)).second) fail("a product was found twice");
            if (generation_of(row) < oldest || generation_of(row) > newest)
                fail("row " + std::to_string(row) + " is not of generations " + std::to_string(oldest) +
                     " to " + std::to_string(newest));
            generations.insert(generation_of(row));
            if (options.filter && row % 2) fail("a row was found that does not match");
            if (!std::isfinite(hits.scores[i]) || (i && hits.scores[i] > hits.scores[i - 1]))
                fail("the scores do not descend");
        }
        if (generations.size() > 1) fail("a search saw a part of a change");
        if (options.strategy && *options.strategy == uniecs::Strategy::exact && !options.filter &&
            hits.rows.size() != std::min<std::size_t>(PRODUCTS, turn % 7 == 0 ? PRODUCTS : 20))
            fail("an exact search found " + std::to_string(hits.rows.size()));
        const std::vector<Row> rows = graph.rows();
        if (rows.size() != PRODUCTS || generation_of(rows.front()) != generation_of(rows.back()))
            fail("the rows are not those of one generation");
        std::vector<float> found(DIM);
        if (graph.vector(rows[turn % PRODUCTS], found) && !(std::abs(length_of(found) - 1) < 0.05f))
            fail("a vector is none that was put");
    }
}

void stress(uniecs::Storage storage, std::size_t generations) {
    Graph graph({DIM, 8, 40, storage});
    std::mt19937 random(1);
    std::atomic<std::size_t> started{0}, finished{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    const auto rows_of = [](std::size_t generation) {
        std::vector<Row> rows(PRODUCTS);
        for (std::size_t p = 0; p < PRODUCTS; ++p) rows[p] = generation * PRODUCTS + p + 1;
        return rows;
    };
    graph.apply({}, rows_of(0), vectors_of_products(random), 2);
    for (unsigned seed = 2; seed < 5; ++seed)
        threads.emplace_back([&, seed] { searches(graph, started, finished, stop, seed, storage); });
    const std::string path = "graph_stress." + std::to_string(static_cast<int>(storage)) + ".tmp";
    for (std::size_t g = 1; g <= generations; ++g) {
        started = g;
        graph.apply(rows_of(g - 1), rows_of(g), vectors_of_products(random), 2);
        finished = g;
        if (g % 3 == 0) graph.repair(2);
        if (g % 4 == 0) {
            graph.save(path, {"m", g, (g + 1) * PRODUCTS});
            const Graph again = Graph::load(path, graph.config(), "m");
            if (again.rows() != graph.rows() || again.rows() != rows_of(g))
                fail("a snapshot does not hold the rows");
        }
    }
    stop = true;
    for (std::thread& each : threads) each.join();
    std::remove(path.c_str());
    const auto stats = graph.stats();
    if (graph.size() != PRODUCTS || stats.live + stats.removed + stats.free > 4 * PRODUCTS)
        fail("places are not used again: " + std::to_string(stats.live + stats.removed + stats.free));
}

}  // namespace

int main(int argc, char** argv) {
    const std::size_t generations = argc > 1 ? static_cast<std::size_t>(std::atoi(argv[1])) : 12;
    for (auto storage : {uniecs::Storage::float32, uniecs::Storage::float16, uniecs::Storage::int8})
        stress(storage, generations);
    std::puts(failed ? "failed" : "passed");
    return failed ? 1 : 0;
}
