// Searches of an index folder on several threads while one adds, replaces, removes and saves; built with the
// sanitizers in CI. Vectors are given, so it needs no bundle.
//
// Each product says in its attributes which generation it is of: a search must find it once, in a generation
// that was current while it ran, and what a filter lets through. At the end the folder must open without
// building its graphs, with all that was done.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "../store/local_index.hpp"

namespace {

using namespace uniecs;
using store::Filter;
using store::LocalIndex;
using store::NewProduct;

constexpr std::size_t DIM = 16, PRODUCTS = 120;
std::atomic<bool> failed{false};

void fail(const std::string& what) {
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    failed = true;
}

std::vector<float> unit_vector(std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> made(DIM);
    float square = 0;
    for (float& each : made) each = normal(random), square += each * each;
    for (float& each : made) each /= std::sqrt(square);
    return made;
}

NewProduct product(std::mt19937& random, std::size_t number, std::size_t generation) {
    NewProduct made;
    made.record.id = "p" + std::to_string(number);
    made.record.title = "product " + made.record.id;
    made.record.attributes = json::parse("{\"generation\":" + std::to_string(generation) +
                                         ",\"even\":" + (number % 2 ? "false" : "true") + ",\"sizes\":[\"" +
                                         std::to_string(number) + "\",\"L\"]}")
                                 .object();
    made.vectors["multimodal"] = unit_vector(random);
    if (number % 3) made.vectors["text"] = unit_vector(random);
    return made;
}

void searches(LocalIndex& index, const std::atomic<std::size_t>& oldest,
              const std::atomic<std::size_t>& newest, const std::atomic<bool>& stop, unsigned seed,
              bool follows) {
    std::mt19937 random(seed);
    const Filter filters[] = {
        store::parse_where(R"({"even": true})"),
        store::parse_where(R"({"$or": [{"sizes": {"$between": [null, 50]}}, {"even": false}]})"),
        store::parse_where(R"({"$not": {"even": true}, "sizes": ["L", null]})")};
    for (std::size_t turn = 0; !stop; ++turn) {
        const Filter* where = turn % 4 == 3 ? nullptr : &filters[turn % 4];
        const std::size_t before = oldest;
        const auto found = index.search(turn % 5 ? "multimodal" : "text", unit_vector(random), 30, where)[0];
        const std::size_t after = newest;
        std::set<std::string> ids;
        float last = 2;
        for (const auto& [record, score] : found) {
            if (!ids.insert(record->id).second) fail(record->id + " was found twice");
            if (where && !store::matches(*where, record->attributes)) fail(record->id + " does not match");
            const auto generation = static_cast<std::size_t>(record->attributes.at("generation").integer());
            if (!follows && (generation < before || generation > after))
                fail(record->id + " is of generation " + std::to_string(generation) + ", not " +
                     std::to_string(before) + " to " + std::to_string(after));
            if (!(score <= last)) fail("the scores do not descend");
            last = score;
        }
        if (!turn && found.empty()) fail("nothing was found");
    }
}

void changes(LocalIndex& index, std::size_t generations, std::atomic<std::size_t>& oldest,
             std::atomic<std::size_t>& newest) {
    std::mt19937 random(1);
    for (std::size_t generation = 1; generation <= generations; ++generation) {
        newest = generation;
        std::vector<NewProduct> products;
        for (std::size_t i = 0; i < PRODUCTS; ++i) products.push_back(product(random, i, generation));
        index.put(products);
        oldest = generation;
        index.remove({"p1", "p2", "p3"});
        index.put(
            {product(random, 1, generation), product(random, 2, generation), product(random, 3, generation)});
        if (generation % 3 == 0) index.save();
    }
}

void stress(Storage storage, std::size_t generations) {
    const std::string folder = "engine_stress." + std::to_string(static_cast<int>(storage)) + ".uniecs";
    std::filesystem::remove_all(folder);
    store::Header header;
    header.model_id = "m";
    header.embed_dim = DIM;
    header.bundle_path = "/none";
    header.config = {{"multimodal", "text"}, 8, 40, storage};
    OpenOptions options;
    options.durability = Durability::batch;
    options.warning = [](const std::string& warning) { fail(warning); };
    {
        const auto index = LocalIndex::create(folder, header, options);
        std::atomic<std::size_t> oldest{0}, newest{0};
        std::atomic<bool> stop{false};
        changes(*index, 1, oldest, newest);
        index->save();
        const auto reader = LocalIndex::open(folder, options);
        std::vector<std::thread> threads;
        for (unsigned seed = 2; seed < 5; ++seed)
            threads.emplace_back([&, seed] { searches(*index, oldest, newest, stop, seed, false); });
        threads.emplace_back([&] { searches(*reader, oldest, newest, stop, 9, true); });
        oldest = 0;
        changes(*index, generations, oldest, newest);
        stop = true;
        for (std::thread& each : threads) each.join();
        index->save();
        index->close();
    }
    const auto again = LocalIndex::open(folder, options);
    std::mt19937 random(7);
    const auto all = again->search("multimodal", unit_vector(random), 1000, nullptr)[0];
    if (again->size() != PRODUCTS || all.size() != PRODUCTS) fail("products are missing");
    for (const auto& [record, score] : all)
        if (record->attributes.at("generation").integer() != static_cast<std::int64_t>(generations))
            fail(record->id + " is not of the last generation");
    again->close();
    std::filesystem::remove_all(folder);
}

}  // namespace

int main(int argc, char** argv) {
    const std::size_t generations = argc > 1 ? static_cast<std::size_t>(std::atoi(argv[1])) : 8;
    try {
        for (const auto storage : {Storage::float32, Storage::int8}) stress(storage, generations);
    } catch (const std::exception& error) {
        fail(error.what());
    }
    std::puts(failed ? "failed" : "passed");
    return failed ? 1 : 0;
}
