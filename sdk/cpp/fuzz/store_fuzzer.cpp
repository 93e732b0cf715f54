// libFuzzer on the store of an index, its checksums aside: any bytes as store.sqlite give an IndexFileError,
// or an index that answers, and that takes a change or refuses it with an IndexFileError. Half of the
// mutations are of bytes, half of one value in a table.
//
//   cmake -S sdk/cpp -B build-fuzz -DUNIECS_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++
//   cmake --build build-fuzz --target store_fuzzer
//   build-fuzz/store_fuzzer -max_len=16384 -timeout=60 -rss_limit_mb=4096 NEW_CORPUS
//   sdk/cpp/fuzz/corpus/stores
#include <sqlite3.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "../store/local_index.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

using namespace uniecs;
using store::LocalIndex;

constexpr const char* FILTERS[] = {
    R"({"colour": ["red", null]})", R"({"price": {"$between": [2, 7.5]}})",
    R"({"$or": [{"colour": {"$between": ["a", "m"]}}, {"$not": {"new": true}}], "price": {"$between": [null, 9]}})"};

void require(bool holds) {
    if (!holds) std::abort();
}

// The folder with nothing but the given store.
void make_folder(const std::string& folder, const std::uint8_t* data, std::size_t size) {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    std::FILE* const file = std::fopen((folder + "/store.sqlite").c_str(), "wb");
    require(file && std::fwrite(data, 1, size, file) == size && std::fclose(file) == 0);
}

// What is found, as often as it is asked; IndexFileError is an answer.
template <typename Work>
void ask(Work work) {
    try {
        work();
    } catch (const IndexFileError&) {
    }
}

std::vector<float> query_of(std::size_t dim) {
    return std::vector<float>(dim, 1 / std::sqrt(static_cast<float>(dim)));
}

void read(LocalIndex& index) {
    const std::vector<float> query = query_of(index.header().embed_dim);
    for (const std::string& view : index.header().config.views) {
        ask([&] { index.search(view, query, 5, nullptr); });
        for (const char* where : FILTERS) {
            const store::Filter filter = store::parse_where(where);
            ask([&] {
                const auto found = index.search(view, query, 5, &filter);
                for (const auto& [product, score] : found[0])
                    require(store::matches(filter, product->attributes));
            });
        }
        ask([&] {
            try {
                index.vector("p1", view);
            } catch (const InputError&) {  // there is no p1, or it is not in the view
            }
        });
    }
    ask([&] { index.size(); });
    ask([&] { index.known({"p0", "p1", ""}); });
    ask([&] { index.attribute_keys(); });
}

void change(LocalIndex& index) {
    const std::string& view = index.header().config.views[0];
    store::NewProduct product;
    product.record.id = "p1";
    product.record.title = "new";
    product.record.attributes = json::parse(R"({"colour": "red", "price": 3})").object();
    product.vectors[view] = query_of(index.header().embed_dim);
    ask([&] { index.put({product}); });
    ask([&] { index.save(); });
    ask([&] {
        try {
            index.remove({"p0"});
        } catch (const InputError&) {  // there is no p0
        }
    });
}

// What SQL calls for each value of a column: some come back changed, of the type they had.
void mutated(sqlite3_context* context, int, sqlite3_value** values) {
    auto& random = *static_cast<std::minstd_rand*>(sqlite3_user_data(context));
    if (random() % 8) return sqlite3_result_value(context, values[0]);
    const int type = sqlite3_value_type(values[0]);
    if (type == SQLITE_INTEGER) {
        std::int64_t number = sqlite3_value_int64(values[0]);
        LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(&number), sizeof number, sizeof number);
        return sqlite3_result_int64(context, number);
    }
    const auto* const bytes = static_cast<const std::uint8_t*>(sqlite3_value_blob(values[0]));
    std::vector<std::uint8_t> value(bytes, bytes + sqlite3_value_bytes(values[0]));
    const std::size_t size = value.size();
    value.resize(size + 64);
    const auto length = static_cast<int>(LLVMFuzzerMutate(value.data(), size, value.size()));
    if (type == SQLITE_BLOB)
        sqlite3_result_blob(context, value.data(), length, SQLITE_TRANSIENT);
    else
        sqlite3_result_text(context, reinterpret_cast<char*>(value.data()), length, SQLITE_TRANSIENT);
}

void change_values(const std::string& path, std::minstd_rand& random) {
    constexpr const char* COLUMNS[][2] = {
        {"meta", "value"},           {"product", "content"},          {"product", "row"},
        {"product", "id"},           {"attribute", "value"},          {"attribute", "kind"},
        {"attribute", "row"},        {"attribute_key", "name"},       {"deleted", "row"},
        {"deleted", "sequence"},     {"vector_text", "vector"},       {"vector_text", "row"},
        {"vector_image", "vector"},  {"vector_multimodal", "vector"}, {"vector_image", "row"},
        {"vector_multimodal", "row"}};
    const auto& [table, column] = COLUMNS[random() % std::size(COLUMNS)];
    const std::string name = column;
    sqlite3* connection = nullptr;
    require(sqlite3_open(path.c_str(), &connection) == SQLITE_OK);
    sqlite3_create_function(connection, "mutated", 1, SQLITE_UTF8, &random, mutated, nullptr, nullptr);
    const std::string sql = "PRAGMA synchronous = OFF; UPDATE OR REPLACE " + std::string(table) + " SET " +
                            name + " = mutated(" + name + ")";
    sqlite3_exec(connection, sql.c_str(), nullptr, nullptr, nullptr);  // what is damaged stays as it is
    sqlite3_close(connection);
}

std::string folder_of(const char* purpose) {
    return "/dev/shm/store_fuzzer." + std::to_string(getpid()) + purpose;
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
    std::minstd_rand random(seed);
    if (random() % 2) return LLVMFuzzerMutate(data, size, most);
    const std::string folder = folder_of(".mutated"), path = folder + "/store.sqlite";
    make_folder(folder, data, size);
    change_values(path, random);
    std::ifstream file(path, std::ios::binary);
    const std::string made{std::istreambuf_iterator<char>(file), {}};
    if (made.empty() || made.size() > most) return LLVMFuzzerMutate(data, size, most);
    std::memcpy(data, made.data(), made.size());
    return made.size();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string folder = folder_of("");
    make_folder(folder, data, size);
    OpenOptions options;
    options.durability = Durability::batch;
    options.warning = [](const std::string&) {};
    try {
        const auto index = LocalIndex::open(folder, options);
        read(*index);
        change(*index);
        read(*index);
    } catch (const IndexFileError&) {
    }
    return 0;
}
