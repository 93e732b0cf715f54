// libFuzzer on the snapshots of graphs, their checksum aside: any file gives a SnapshotError or a graph that
// can be searched and changed.
//
//   cmake -S sdk/cpp -B build-fuzz -DUNIECS_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++
//   cmake --build build-fuzz --target snapshot_fuzzer
//   build-fuzz/snapshot_fuzzer -max_len=4096 NEW_CORPUS sdk/cpp/fuzz/corpus/snapshots
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "uniecs/graph.hpp"

namespace {

using uniecs::Row;

constexpr std::size_t STORAGE_AT = 12;  // after the magic and the version
const std::vector<float> VECTOR{0.5F, 0.5F, 0.5F, 0.5F};

void use(uniecs::Graph& graph) {
    graph.search(VECTOR, 3);
    const uniecs::Strategy exact = uniecs::Strategy::exact;
    uniecs::SearchOptions options;
    options.strategy = &exact;
    graph.search(VECTOR, 3, options);
    const std::vector<Row> rows = graph.rows();
    const std::vector<Row> gone(rows.begin(), rows.empty() ? rows.begin() : rows.begin() + 1);
    const Row next = rows.empty() ? 1 : *std::max_element(rows.begin(), rows.end()) + 1;
    const std::vector<Row> added{next};
    try {
        graph.apply(gone, added, VECTOR, 1);
        graph.repair(1);
    } catch (const std::invalid_argument&) {  // the row was used, or is too large
    }
    graph.search(VECTOR, 3);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string path = "/dev/shm/snapshot_fuzzer." + std::to_string(getpid());
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (!file || std::fwrite(data, 1, size, file) != size || std::fclose(file) != 0) std::abort();
    uniecs::GraphConfig config;
    config.dim = 4, config.M = 4, config.ef_construction = 8;
    config.storage = static_cast<uniecs::Storage>(size > STORAGE_AT ? data[STORAGE_AT] % 3 : 0);
    try {
        uniecs::Graph graph = uniecs::Graph::load(path, config, "m");
        use(graph);
    } catch (const uniecs::SnapshotError&) {
    } catch (const std::length_error&) {  // a row beyond what a graph takes
    }
    return 0;
}
