// Eight threads on the C interface at once: for ThreadSanitizer, which would report what OpenVINO does by
// itself, so a stand-in embeds in its place. sdk_stress BUNDLE FOLDER PHOTO; FOLDER must not exist.
//
// Each thread embeds, searches, adds, replaces and removes products of its own, and sends what cannot be
// used: it must find exactly what it wrote, and read the messages of its own errors.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../sdk/backend.hpp"
#include "uniecs/uniecs.h"

namespace {

constexpr unsigned THREADS = 8, TURNS = 12;
std::atomic<bool> failed{false};

void check(bool good, const std::string& what) {
    if (good) return;
    std::fprintf(stderr, "FAILED: %s (%s)\n", what.c_str(), uniecs_error_message());
    failed = true;
}

// The same vector for the same tokens and pixels, another for others.
class StandIn : public uniecs::Backend {
  public:
    explicit StandIn(std::size_t embed_dim) : embed_dim_(embed_dim) {}

    void embed(const uniecs::Batch& batch, float* out) override {
        const std::size_t image = 3 * batch.height * batch.width;
        for (std::size_t row = 0; row < batch.size; ++row) {
            std::uint64_t seed = 1;
            for (std::size_t i = 0; batch.input_ids && i < batch.tokens; ++i)
                seed =
                    seed * 31 + static_cast<std::uint64_t>(batch.input_ids[row * batch.tokens + i]) *
                                    static_cast<std::uint64_t>(batch.attention_mask[row * batch.tokens + i]);
            for (std::size_t i = 0; batch.pixel_values && i < image; i += 97)
                seed =
                    seed * 31 + static_cast<std::uint64_t>(1e3f * (9 + batch.pixel_values[row * image + i]));
            std::mt19937_64 random(seed);
            std::normal_distribution<float> normal;
            float square = 0;
            float* const made = out + row * embed_dim_;
            for (std::size_t i = 0; i < embed_dim_; ++i)
                made[i] = normal(random), square += made[i] * made[i];
            for (std::size_t i = 0; i < embed_dim_; ++i) made[i] /= std::sqrt(square);
        }
    }

  private:
    std::size_t embed_dim_;
};

class Client {
  public:
    Client(const uniecs_encoder* encoder, uniecs_engine* engine, const char* photo, unsigned number)
        : encoder_(encoder), engine_(engine), photo_(photo), number_(std::to_string(number)) {}

    void turn(unsigned turn) {
        const std::string id = "t" + number_ + "-" + std::to_string(turn), title = "red kurta " + id;
        const uniecs_item query{title.c_str(), turn % 2 ? photo_ : nullptr, nullptr, 0};
        put(uniecs_engine_add, id, title, turn % 2 ? photo_ : nullptr);
        encode(query);
        finds(query, id);
        put(uniecs_engine_update, id, "blue bag " + id, nullptr);
        const std::string changed = "blue bag " + id;
        finds({changed.c_str(), nullptr, nullptr, 0}, id);
        if (turn % 3 == 0) removes(id);
        if (number_ == "0" && turn % 4 == 0) check(uniecs_engine_save(engine_) == UNIECS_OK, "save");
    }

  private:
    template <typename Put>
    void put(Put put, const std::string& id, const std::string& title, const char* photo) const {
        const std::string attributes = "{\"owner\":" + number_ + "}";
        const uniecs_product products[] = {{id.c_str(), title.c_str(), photo, nullptr, 0, attributes.c_str()},
                                           {nullptr, title.c_str(), nullptr, nullptr, 0, nullptr}};
        uniecs_report* report = nullptr;
        check(put(engine_, products, 2, &report) == UNIECS_OK, "put " + id);
        check(uniecs_report_added(report) == 1 && uniecs_report_rejected(report) == 1, "report of " + id);
        uniecs_report_free(report);
    }

    void encode(const uniecs_item& good) const {
        const std::size_t dim = uniecs_encoder_embed_dim(encoder_);
        const std::string missing = "missing-" + number_;
        const uniecs_item items[] = {good, {nullptr, missing.c_str(), nullptr, 0}, good};
        std::vector<float> x(3 * dim);
        uniecs_report* report = nullptr;
        check(uniecs_encoder_encode(encoder_, items, 3, 2, x.data(), &report) == UNIECS_OK, "encode");
        const uniecs_rejection* left_out = uniecs_report_at(report, 0);
        check(left_out && left_out->row == 1 && left_out->status == UNIECS_IMAGE, "report of encode");
        check(x[0] == x[2 * dim] && std::isnan(x[dim]), "embeddings");
        uniecs_report_free(report);
        check(uniecs_encoder_encode(encoder_, items, 3, 0, x.data(), nullptr) == UNIECS_IMAGE, "refuse");
        check(std::string(uniecs_error_message()).find(missing) != std::string::npos, "own message");
    }

    void finds(const uniecs_item& query, const std::string& id) const {
        const std::string where = "{\"owner\":" + number_ + "}";
        const uniecs_item queries[] = {query, {"\xff", nullptr, nullptr, 0}};
        uniecs_hits* hits = nullptr;
        check(uniecs_engine_search_batch(engine_, queries, 2, 3, nullptr, where.c_str(), &hits) == UNIECS_OK,
              "search");
        check(uniecs_hits_status(hits, 1) == UNIECS_TEXT, "a query that cannot be used");
        const uniecs_hit* first = uniecs_hits_at(hits, 0, 0);
        check(first && first->id == id && first->score > .999f, "find " + id);
        check(std::string(uniecs_hits_json(hits, 0)).find("\"" + id + "\"") != std::string::npos, "json");
        uniecs_hits_free(hits);
        hits = nullptr;
        check(uniecs_engine_similar(engine_, id.c_str(), 3, "multimodal", nullptr, &hits) == UNIECS_OK,
              "similar");
        uniecs_hits_free(hits);
    }

    void removes(const std::string& id) const {
        const char* ids[] = {id.c_str()};
        std::size_t removed = 0;
        check(uniecs_engine_remove(engine_, ids, 1, &removed) == UNIECS_OK && removed == 1, "remove " + id);
        check(uniecs_engine_remove(engine_, ids, 1, nullptr) == UNIECS_INPUT, "remove again");
    }

    const uniecs_encoder* encoder_;
    uniecs_engine* engine_;
    const char* photo_;
    std::string number_;
};

}  // namespace

std::unique_ptr<uniecs::Backend> uniecs::openvino_backend(Graphs, std::size_t embed_dim, const std::string&,
                                                          unsigned) {
    return std::make_unique<StandIn>(embed_dim);
}

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    uniecs_encoder* encoder = nullptr;
    uniecs_engine* engine = nullptr;
    const uniecs_open_options options{"batch", nullptr, nullptr};
    check(uniecs_encoder_load(argv[1], nullptr, nullptr, 0, &encoder) == UNIECS_OK, "load");
    check(uniecs_engine_create(argv[2], encoder, nullptr, &options, &engine) == UNIECS_OK, "create");
    if (failed) return 1;
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < THREADS; ++number)
        threads.emplace_back([&, number] {
            Client client(encoder, engine, argv[3], number);
            for (unsigned turn = 0; turn < TURNS; ++turn) client.turn(turn);
        });
    for (std::thread& each : threads) each.join();
    std::size_t products = 0;
    check(uniecs_engine_size(engine, &products) == UNIECS_OK && products == THREADS * (TURNS - TURNS / 3),
          "size");
    uniecs_engine_free(engine);
    uniecs_encoder_free(encoder);
    return failed ? 1 : 0;
}
