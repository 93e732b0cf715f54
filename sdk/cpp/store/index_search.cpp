// Searches of a LocalIndex beside its changes.
#include <algorithm>
#include <numeric>

#include "local_index.hpp"

namespace uniecs::store {
namespace {

// Searches beside changes that spoil them; then one while nothing may change.
constexpr int ATTEMPTS = 3;
// Of float16 and int8 graphs so many times k are scored anew with the store's float32 vectors.
constexpr std::size_t RESCORED = 2, MIN_RESCORED = 20;

// The rows of all hits, ascending, each once.
std::vector<Row> rows_of(const std::vector<Hits>& hits) {
    std::vector<Row> rows;
    for (const Hits& each : hits) rows.insert(rows.end(), each.rows.begin(), each.rows.end());
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    return rows;
}

}  // namespace

std::vector<std::vector<Found>> LocalIndex::search(const std::string& view, Span<const float> queries,
                                                   std::size_t k, const Filter* where) {
    follow();
    for (int attempt = 0; attempt < ATTEMPTS; ++attempt) {
        Reader reader(*store_);
        const std::uint64_t version = filters_.version();
        auto found = find(reader, view, queries, k, where);
        if (!found)
            see_changes(reader);
        else if (!where || version == filters_.version())
            return *std::move(found);
    }
    const std::lock_guard<std::recursive_mutex> lock(changing_);
    Reader reader(*store_);
    const Reader::Moment moment(reader);
    see_changes(reader);
    auto found = find(reader, view, queries, k, where);
    if (!found)
        throw IndexFileError(store_->folder() +
                             " is damaged: it has vectors of products that it has not; verify it");
    return *std::move(found);
}

std::optional<std::vector<std::vector<Found>>> LocalIndex::find(Reader& reader, const std::string& view,
                                                                Span<const float> queries, std::size_t k,
                                                                const Filter* where) {
    std::vector<Hits> hits = in_graph(reader, view, queries, k, where);
    if (header().config.storage != Storage::float32 && !rescore(reader, view, queries, k, hits))
        return std::nullopt;
    const std::vector<Row> wanted = rows_of(hits);
    const auto products = reader.products(wanted);
    if (!std::all_of(wanted.begin(), wanted.end(), [&](Row row) { return products.count(row) > 0; }))
        return std::nullopt;
    if (where)
        for (const auto& [row, product] : products)
            if (!matches(*where, product->attributes))
                throw IndexFileError(store_->folder() +
                                     " is damaged: a filter found what does not match; verify it");
    std::vector<std::vector<Found>> found(hits.size());
    for (std::size_t i = 0; i < hits.size(); ++i)
        for (std::size_t j = 0; j < hits[i].rows.size(); ++j)
            found[i].push_back({products.at(hits[i].rows[j]), hits[i].scores[j]});
    return found;
}

// The graph's own answer: for vectors that are not float32 more than `k` rows, to be scored anew.
std::vector<Hits> LocalIndex::in_graph(Reader& reader, const std::string& view, Span<const float> queries,
                                       std::size_t k, const Filter* where) {
    SearchOptions options;
    FilterSets::Matching matching{};
    if (where) {
        matching = filters_.find(*where, [&](const Filter& each) { return rows_matching(reader, each); });
        options.filter = matching.rows.get();
        options.matching = matching.count;
    }
    const auto graph = std::atomic_load(&views_.at(view).graph);
    if (!graph) throw InputError(store_->folder() + " is closed; open the index again");
    if (header().config.storage != Storage::float32)
        k = std::max(MIN_RESCORED, RESCORED * std::min(k, graph->size()));
    return graph->search_batch(queries, k, options, queries.size() == header().embed_dim ? 1 : cpus_);
}

// The best `k` by the store's vectors; false if the store has not all of them.
bool LocalIndex::rescore(Reader& reader, const std::string& view, Span<const float> queries, std::size_t k,
                         std::vector<Hits>& hits) const {
    const std::size_t dim = header().embed_dim;
    const std::vector<Row> wanted = rows_of(hits);
    const Vectors known = reader.vectors(view, wanted);
    if (known.rows != wanted) return false;
    for (std::size_t i = 0; i < hits.size(); ++i) {
        std::vector<std::pair<float, Row>> scored;
        for (const Row row : hits[i].rows) {
            const auto place = static_cast<std::size_t>(
                std::lower_bound(known.rows.begin(), known.rows.end(), row) - known.rows.begin());
            const float* const vector = &known.values[place * dim];
            scored.emplace_back(std::inner_product(vector, vector + dim, queries.data() + i * dim, 0.0f),
                                row);
        }
        std::sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) {
            return a.first != b.first ? a.first > b.first : a.second < b.second;
        });
        scored.resize(std::min(k, scored.size()));
        hits[i].rows.clear(), hits[i].scores.clear();
        for (const auto& [score, row] : scored) hits[i].rows.push_back(row), hits[i].scores.push_back(score);
    }
    return true;
}

}  // namespace uniecs::store
