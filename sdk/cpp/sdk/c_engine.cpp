// The C interface of SearchEngine: it keeps what a call gave, and hands out pointers into it.
#include <algorithm>
#include <mutex>
#include <string_view>

#include "c_status.hpp"

using namespace uniecs::c;

struct uniecs_engine {
    explicit uniecs_engine(uniecs::SearchEngine opened) : engine(std::move(opened)) {
        for (const std::string& view : engine.views()) views += (views.empty() ? "" : ",") + view;
    }

    uniecs::SearchEngine engine;
    std::string views;
};

struct uniecs_hits {
    struct Query {
        uniecs_status status = UNIECS_OK;
        std::string message;
        std::vector<uniecs::Hit> kept;
        std::vector<uniecs_hit> hits;
        mutable std::string json;  // made when it is asked for
    };
    std::vector<Query> queries;
    mutable std::mutex making_json;
};

namespace {

uniecs::Durability durability_of(const char* name) {
    if (!name || name == std::string_view("full")) return uniecs::Durability::full;
    if (name == std::string_view("batch")) return uniecs::Durability::batch;
    throw uniecs::InputError(std::string("durability is '") + name + "'; expected full or batch");
}

uniecs::OpenOptions options_of(const uniecs_open_options* given) {
    uniecs::OpenOptions options;
    if (!given) return options;
    options.durability = durability_of(given->durability);
    if (given->warning)
        options.warning = [tell = given->warning, data = given->warning_data](const std::string& message) {
            tell(message.c_str(), data);
        };
    return options;
}

uniecs::Storage storage_of(const char* name) {
    if (!name || name == std::string_view("float32")) return uniecs::Storage::float32;
    if (name == std::string_view("float16")) return uniecs::Storage::float16;
    if (name == std::string_view("int8")) return uniecs::Storage::int8;
    throw uniecs::InputError(std::string("storage is '") + name + "'; expected float32, float16 or int8");
}

uniecs::IndexConfig config_of(const uniecs_index_config* given) {
    uniecs::IndexConfig config;
    if (!given) return config;
    if (given->M) config.M = given->M;
    if (given->ef_construction) config.ef_construction = given->ef_construction;
    config.storage = storage_of(given->storage);
    if (given->views) {
        config.views.clear();
        const std::string_view views = given->views;
        for (std::size_t start = 0, end; start <= views.size(); start = end + 1) {
            end = std::min(views.find(',', start), views.size());
            config.views.emplace_back(views.substr(start, end - start));
        }
    }
    return config;
}

uniecs::QueryOptions query_options(size_t k, const char* view, const char* where) {
    return {k, view ? view : "", where ? where : ""};
}

uniecs::Product product_of(const uniecs_product& given) {
    require(given.id, "the id of a product");
    uniecs::Product product{given.id,
                            {},
                            image_of(given.image_path, given.image_data, given.image_bytes),
                            given.attributes ? given.attributes : "{}"};
    if (given.title) product.title = given.title;
    return product;
}

uniecs_hit hit_of(const uniecs::Hit& hit) {
    const uniecs::Product& product = hit.product;
    return {hit.id.c_str(), hit.score, product.title ? product.title->c_str() : nullptr,
            product.image ? product.image->path().c_str() : nullptr, product.attributes.c_str()};
}

uniecs_hits::Query query_of(std::vector<uniecs::Hit> hits, const std::exception_ptr& error) {
    uniecs_hits::Query query;
    if (error) query.status = status_of(error, query.message);
    query.kept = std::move(hits);
    for (const uniecs::Hit& each : query.kept) query.hits.push_back(hit_of(each));
    return query;
}

uniecs_hits* one_query(std::vector<uniecs::Hit> hits) {
    auto made = std::make_unique<uniecs_hits>();
    made->queries.push_back(query_of(std::move(hits), nullptr));
    return made.release();
}

template <typename Call>
uniecs_status put(uniecs_engine* engine, const uniecs_product* products, size_t n, uniecs_report** report,
                  Call call) {
    return guarded([&] {
        if (report) *report = nullptr;
        require(engine, "engine");
        if (n) require(products, "products");
        const Made<uniecs::Product> made = made_of(products, n, product_of);
        uniecs::AddReport all = call(engine->engine, made.good);
        for (uniecs::Rejected& each : all.rejected) each.row = made.places[each.row];
        for (size_t i = 0; i < n; ++i)
            if (made.errors[i])
                all.rejected.push_back({i, products[i].id ? products[i].id : "", made.errors[i], ""});
        std::sort(all.rejected.begin(), all.rejected.end(),
                  [](const auto& a, const auto& b) { return a.row < b.row; });
        keep_report(std::move(all), report);
    });
}

const uniecs_hits::Query* query_at(const uniecs_hits* hits, size_t query) {
    return hits && query < hits->queries.size() ? &hits->queries[query] : nullptr;
}

}  // namespace

uniecs_status uniecs_engine_create(const char* path, const uniecs_encoder* encoder,
                                   const uniecs_index_config* config, const uniecs_open_options* options,
                                   uniecs_engine** engine) {
    return guarded([&] {
        clear(engine, "engine");
        require(path, "path"), require(encoder, "encoder");
        *engine = new uniecs_engine(
            uniecs::SearchEngine::create(path, encoder->encoder, config_of(config), options_of(options)));
    });
}

uniecs_status uniecs_engine_open(const char* path, const uniecs_encoder* encoder,
                                 const uniecs_open_options* options, uniecs_engine** engine) {
    return guarded([&] {
        clear(engine, "engine");
        require(path, "path"), require(encoder, "encoder");
        *engine = new uniecs_engine(uniecs::SearchEngine::open(path, encoder->encoder, options_of(options)));
    });
}

void uniecs_engine_free(uniecs_engine* engine) { delete engine; }

uniecs_status uniecs_engine_close(uniecs_engine* engine) {
    return guarded([&] { require(engine, "engine"), engine->engine.close(); });
}

uniecs_status uniecs_engine_save(uniecs_engine* engine) {
    return guarded([&] { require(engine, "engine"), engine->engine.save(); });
}

uniecs_status uniecs_engine_size(const uniecs_engine* engine, size_t* products) {
    return guarded([&] {
        require(engine, "engine"), require(products, "products");
        *products = engine->engine.size();
    });
}

const char* uniecs_engine_views(const uniecs_engine* engine) { return engine ? engine->views.c_str() : ""; }

uniecs_status uniecs_engine_add(uniecs_engine* engine, const uniecs_product* products, size_t n,
                                uniecs_report** report) {
    return put(engine, products, n, report,
               [](uniecs::SearchEngine& e, const auto& all) { return e.add(all); });
}

uniecs_status uniecs_engine_update(uniecs_engine* engine, const uniecs_product* products, size_t n,
                                   uniecs_report** report) {
    return put(engine, products, n, report,
               [](uniecs::SearchEngine& e, const auto& all) { return e.update(all); });
}

uniecs_status uniecs_engine_remove(uniecs_engine* engine, const char* const* ids, size_t n, size_t* removed) {
    return guarded([&] {
        if (removed) *removed = 0;
        require(engine, "engine");
        if (n) require(ids, "ids");
        std::vector<std::string> all;
        for (size_t i = 0; i < n; ++i) require(ids[i], "an id"), all.emplace_back(ids[i]);
        const std::size_t count = engine->engine.remove(all);
        if (removed) *removed = count;
    });
}

uniecs_status uniecs_engine_search(const uniecs_engine* engine, const uniecs_item* query, size_t k,
                                   const char* view, const char* where, uniecs_hits** hits) {
    return guarded([&] {
        clear(hits, "hits");
        require(engine, "engine"), require(query, "query");
        *hits = one_query(engine->engine.search(item_of(*query), query_options(k, view, where)));
    });
}

uniecs_status uniecs_engine_search_batch(const uniecs_engine* engine, const uniecs_item* queries, size_t n,
                                         size_t k, const char* view, const char* where, uniecs_hits** hits) {
    return guarded([&] {
        clear(hits, "hits");
        require(engine, "engine");
        if (n) require(queries, "queries");
        const Made<uniecs::Item> made = made_of(queries, n, item_of);
        std::vector<std::exception_ptr> errors;
        auto found = engine->engine.search_batch(made.good, query_options(k, view, where), errors);
        auto all = std::make_unique<uniecs_hits>();
        for (const std::exception_ptr& error : made.errors) all->queries.push_back(query_of({}, error));
        for (size_t i = 0; i < found.size(); ++i)
            all->queries[made.places[i]] = query_of(std::move(found[i]), errors[i]);
        *hits = all.release();
    });
}

uniecs_status uniecs_engine_similar(const uniecs_engine* engine, const char* id, size_t k, const char* view,
                                    const char* where, uniecs_hits** hits) {
    return guarded([&] {
        clear(hits, "hits");
        require(engine, "engine"), require(id, "id");
        *hits = one_query(engine->engine.similar(id, query_options(k, view, where)));
    });
}

size_t uniecs_hits_queries(const uniecs_hits* hits) { return hits ? hits->queries.size() : 0; }

uniecs_status uniecs_hits_status(const uniecs_hits* hits, size_t query) {
    const auto* found = query_at(hits, query);
    return found ? found->status : UNIECS_INPUT;
}

const char* uniecs_hits_message(const uniecs_hits* hits, size_t query) {
    const auto* found = query_at(hits, query);
    return found ? found->message.c_str() : nullptr;
}

size_t uniecs_hits_count(const uniecs_hits* hits, size_t query) {
    const auto* found = query_at(hits, query);
    return found ? found->hits.size() : 0;
}

const uniecs_hit* uniecs_hits_at(const uniecs_hits* hits, size_t query, size_t place) {
    const auto* found = query_at(hits, query);
    return found && place < found->hits.size() ? &found->hits[place] : nullptr;
}

const char* uniecs_hits_json(const uniecs_hits* hits, size_t query) {
    const auto* found = query_at(hits, query);
    if (!found) return nullptr;
    const uniecs_status made = guarded([&] {
        const std::lock_guard<std::mutex> lock(hits->making_json);
        if (found->json.empty()) found->json = uniecs::to_json(found->kept);
    });
    return made == UNIECS_OK ? found->json.c_str() : nullptr;
}

void uniecs_hits_free(uniecs_hits* hits) { delete hits; }
