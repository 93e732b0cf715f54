#include "local_index.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

namespace uniecs::store {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t REFRESH_NS = 1'000'000'000;  // a process that only reads looks for changes so often

// CPUs that this process may use: by its affinity and, on Linux, the quota of its cgroup (v2); at least 1.
unsigned usable_cpus() {
    const unsigned cpus = std::max(1u, std::thread::hardware_concurrency());
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    double quota, period;
    if (file >> quota >> period && quota > 0 && period > 0)
        return std::max(1u, std::min(cpus, static_cast<unsigned>(std::ceil(quota / period))));
    return cpus;
}

std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

void check_unit(const Vectors& vectors, std::size_t dim) {
    for (std::size_t i = 0; i < vectors.rows.size(); ++i) {
        double square = 0;
        for (std::size_t d = 0; d < dim; ++d) square += std::pow(vectors.values[i * dim + d], 2);
        if (!(std::abs(std::sqrt(square) - 1) <= 1e-3))
            throw IndexFileError("the vector of row " + std::to_string(vectors.rows[i]) +
                                 " has the L2 norm " + std::to_string(std::sqrt(square)) + "; expected 1");
    }
}

// What a killed process left of snapshots: one writes at a time.
void remove_left(const std::string& folder) {
    std::error_code failed;
    for (fs::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed)) {
        const std::string name = at->path().filename().string();
        const bool is_left = name.rfind("graph-", 0) == 0 && name.find(".hnsw.") != std::string::npos &&
                             at->path().extension() == ".tmp";
        std::error_code ignored;
        if (is_left) fs::remove(at->path(), ignored);
    }
}

std::vector<Row> those_in(const Graph& graph, const std::vector<Row>& rows) {
    std::vector<Row> found;
    std::copy_if(rows.begin(), rows.end(), std::back_inserter(found),
                 [&](Row row) { return graph.contains(row); });
    return found;
}

}  // namespace

LocalIndex::LocalIndex(std::unique_ptr<Store> store, const OpenOptions& options)
    : store_(std::move(store)),
      warning_(options.warning
                   ? options.warning
                   : [](const std::string& text) { std::fprintf(stderr, "uniecs: %s\n", text.c_str()); }),
      cpus_(usable_cpus()),
      threads_(std::max(2u, cpus_) - 1),  // one is left to searches
      looked_(now_ns()) {
    for (const std::string& view : header().config.views) views_[view];
}

std::unique_ptr<LocalIndex> LocalIndex::create(const std::string& folder, const Header& header,
                                               const OpenOptions& options) {
    std::error_code failed;
    if (fs::exists(folder, failed) && !(fs::is_directory(folder, failed) && fs::is_empty(folder, failed)))
        throw IndexFileError(folder +
                             " already exists; open it with SearchEngine::open, or choose another path");
    auto index = std::make_unique<LocalIndex>(Store::create(folder, header, options.durability), options);
    for (auto& [name, view] : index->views_) view.graph = index->empty_graph();
    return index;
}

std::unique_ptr<LocalIndex> LocalIndex::open(const std::string& folder, const OpenOptions& options) {
    auto index = std::make_unique<LocalIndex>(Store::open(folder, options.durability), options);
    Reader reader(*index->store_);
    for (const std::string& view : index->header().config.views) index->load(reader, view);
    index->filters_.forget(reader.state().last_row);
    return index;
}

std::shared_ptr<Graph> LocalIndex::empty_graph() const {
    const IndexConfig& config = header().config;
    return std::make_shared<Graph>(GraphConfig{static_cast<std::uint32_t>(header().embed_dim), config.M,
                                               config.ef_construction, config.storage});
}

std::string LocalIndex::snapshot_path(const std::string& view) const {
    return store_->folder() + "/graph-" + view + ".hnsw";
}

// What a snapshot must have been made for: this model, and this very store.
std::string LocalIndex::owner() const { return header().model_id + " " + header().store_id; }

// The graph of a view, from its snapshot if that is of any use; searches see it once it is whole.
void LocalIndex::load(Reader& reader, const std::string& view) {
    View& place = views_.at(view);
    std::shared_ptr<Graph> graph;
    Reached reached{};
    std::string failed;
    try {
        SnapshotInfo info;
        graph = std::make_shared<Graph>(
            Graph::load(snapshot_path(view), empty_graph()->config(), owner(), &info));
        reached = catch_up(reader, view, *graph, {info.sequence, info.last_row}, false);
        place.saved = info.sequence;
    } catch (const SnapshotError& error) {
        failed = error.what();
    } catch (const IndexFileError& error) {
        failed = error.what();
    }
    if (!failed.empty()) {
        if (reader.state().vectors.at(view))
            warning_("building the graph of the view " + view + " anew: " + failed);
        place.saved.reset();
        const Reader::Moment moment(reader);
        graph = empty_graph();
        reached = build(reader, view, *graph);
        reached = catch_up(reader, view, *graph, reached, false);
    }
    std::atomic_store(&place.graph, std::move(graph));
    place.last_row = reached.last_row;
    place.sequence = reached.sequence;
}

// Bring a graph up to the store; `at_once` for one that is searched. Throws IndexFileError if it cannot have
// been made from this store.
LocalIndex::Reached LocalIndex::catch_up(Reader& reader, const std::string& view, Graph& graph,
                                         Reached reached, bool at_once) const {
    const Reader::Moment moment(reader);
    const State state = reader.state();
    if (reached.sequence < state.purged || reached.sequence > state.sequence ||
        reached.last_row > state.last_row)
        throw IndexFileError("the graph of " + view +
                             " is newer than the store, or older than what it tells of");
    std::vector<Row> removed = those_in(graph, reader.deleted_after(reached.sequence));
    Vectors added = reader.vectors_after(view, reached.last_row);
    while (at_once && !added.rows.empty()) {
        const Vectors more = reader.vectors_after(view, added.rows.back());
        if (more.rows.empty()) break;
        added.rows.insert(added.rows.end(), more.rows.begin(), more.rows.end());
        added.values.insert(added.values.end(), more.values.begin(), more.values.end());
    }
    try {
        while (!removed.empty() || !added.rows.empty()) {
            check_unit(added, header().embed_dim);
            graph.apply(removed, added.rows, added.values, threads_);
            removed.clear();
            added = added.rows.empty() || at_once ? Vectors{} : reader.vectors_after(view, added.rows.back());
        }
    } catch (const std::invalid_argument& error) {  // a change that was stopped before left some of it
        throw IndexFileError("the graph of " + view +
                             " does not take the changes of the store: " + error.what());
    }
    if (graph.size() != state.vectors.at(view))
        throw IndexFileError("the graph of " + view + " has " + std::to_string(graph.size()) +
                             " rows, the store " + std::to_string(state.vectors.at(view)));
    return {state.sequence, state.last_row};
}

// Fill a new graph from the store; returns the sequence and last row from which on it must catch up.
LocalIndex::Reached LocalIndex::build(Reader& reader, const std::string& view, Graph& graph) const {
    Reached reached{reader.state().sequence, 0};
    for (;;) {
        const Vectors batch = reader.vectors_after(view, reached.last_row);
        if (batch.rows.empty()) return reached;
        check_unit(batch, header().embed_dim);
        try {
            graph.apply({}, batch.rows, batch.values, cpus_);
        } catch (const std::invalid_argument& error) {
            throw IndexFileError(store_->path() + " is damaged: its vectors make no graph: " + error.what());
        }
        reached.last_row = batch.rows.back();
    }
}

// See what another process has written since, or what a change that failed has left.
void LocalIndex::refresh(Reader& reader) {
    const std::lock_guard<std::recursive_mutex> lock(changing_);
    // All of it of one moment: filters' sets must not know fewer rows than the graphs show.
    const Reader::Moment moment(reader);
    // First: a search that still has a set of before sees that it must search again.
    filters_.forget(reader.state().last_row);
    for (auto& [view, place] : views_) {
        const auto graph = std::atomic_load(&place.graph);
        if (!graph) throw InputError(store_->folder() + " is closed; open the index again");
        try {
            const Reached reached = catch_up(reader, view, *graph, {place.sequence, place.last_row}, true);
            place.last_row = reached.last_row;
            place.sequence = reached.sequence;
        } catch (const SqliteError&) {
            throw;
        } catch (const IndexFileError&) {
            load(reader, view);
        }
    }
    behind_ = false;
}

// Wait until the change under way is whole, and see what another process has written since.
void LocalIndex::see_changes(Reader& reader) {
    const std::lock_guard<std::recursive_mutex> lock(changing_);
    const std::uint64_t sequence = reader.state().sequence;
    const auto is_behind = [&](const auto& each) { return each.second.sequence != sequence; };
    if (behind_ || std::any_of(views_.begin(), views_.end(), is_behind)) refresh(reader);
}

// See what the writing process has done, if another is that; one thread at a time, the others go on.
void LocalIndex::follow() {
    if (store_->writes() || now_ns() - looked_ < REFRESH_NS) return;
    const std::unique_lock<std::recursive_mutex> lock(changing_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    looked_ = now_ns();
    Reader reader(*store_);
    see_changes(reader);
}

// As of the store; on return the graphs show no row that is gone from it, which the rows might lack.
std::vector<Row> LocalIndex::rows_matching(Reader& reader, const Filter& predicate) {
    std::vector<Row> rows;
    std::uint64_t sequence;
    {
        const Reader::Moment moment(reader);
        rows = reader.rows_matching(predicate);
        sequence = reader.state().sequence;
    }
    const auto is_behind = [&](const auto& each) { return each.second.sequence < sequence; };
    if (std::any_of(views_.begin(), views_.end(), is_behind)) see_changes(reader);
    return rows;
}

std::size_t LocalIndex::size() const { return Reader(*store_).state().products; }

std::set<std::string> LocalIndex::known(const std::vector<std::string>& ids) const {
    std::set<std::string> found;
    for (const auto& [id, row] : Reader(*store_).rows_of(ids)) found.insert(id);
    return found;
}

std::set<std::string> LocalIndex::attribute_keys() const { return Reader(*store_).attribute_keys(); }

std::vector<float> LocalIndex::vector(const std::string& id, const std::string& view) const {
    Reader reader(*store_);
    const Reader::Moment moment(reader);
    const auto rows = reader.rows_of({id});
    const auto row = rows.find(id);
    if (row == rows.end()) throw InputError("id '" + id + "' is not in the index");
    Vectors found = reader.vectors(view, {row->second});
    if (found.rows.empty()) throw InputError("product '" + id + "' has no vector in the view '" + view + "'");
    return std::move(found.values);
}

// Holds what `changing_` guards; a change that stops between store and graph is made up for by the next.
template <typename Work>
void LocalIndex::change(Work work) {
    const std::lock_guard<std::recursive_mutex> lock(changing_);
    store_->begin_writing();
    {
        Reader reader(*store_);
        see_changes(reader);  // another process may have written before
    }
    remove_unusable();
    try {
        work();
    } catch (...) {
        behind_ = true;
        throw;
    }
}

// Snapshots that `load` refused: one newer than the store would be taken once the store has grown past it.
void LocalIndex::remove_unusable() const {
    for (const auto& [view, place] : views_) {
        if (place.saved) continue;
        std::error_code failed;
        const bool removed = fs::remove(snapshot_path(view), failed);
        if (failed) throw IndexFileError(snapshot_path(view) + " cannot be removed: " + failed.message());
        if (removed) sync_path(store_->folder());
    }
}

void LocalIndex::put(const std::vector<NewProduct>& products) {
    change([&] {
        const Changed changed = store_->put(products);
        std::vector<std::pair<Row, const Record*>> rows;
        for (std::size_t i = 0; i < products.size(); ++i)
            rows.emplace_back(changed.added[i], &products[i].record);
        filters_.add(rows, changed.last_row);
        for (const auto& [view, place] : views_) show(view, changed, products);
        forget_filters(changed.removed.size());
    });
}

void LocalIndex::remove(const std::vector<std::string>& ids) {
    change([&] {
        const Changed changed = store_->remove(ids);
        for (const auto& [view, place] : views_) show(view, changed, {});
        forget_filters(changed.removed.size());
    });
}

// Make a change of the store visible to searches of a view.
void LocalIndex::show(const std::string& view, const Changed& changed,
                      const std::vector<NewProduct>& products) {
    View& place = views_.at(view);
    const auto graph = std::atomic_load(&place.graph);
    Vectors added;
    for (std::size_t i = 0; i < products.size(); ++i)
        if (const auto found = products[i].vectors.find(view); found != products[i].vectors.end()) {
            added.rows.push_back(changed.added[i]);
            added.values.insert(added.values.end(), found->second.begin(), found->second.end());
        }
    graph->apply(those_in(*graph, changed.removed), added.rows, added.values, threads_);
    place.last_row = changed.last_row;
    place.sequence = changed.sequence;
}

// Deleted rows stay in filters' sets until they are a tenth of the products.
void LocalIndex::forget_filters(std::size_t deleted) {
    deleted_ += deleted;
    const State state = Reader(*store_).state();
    if (10 * deleted_ <= std::max<std::size_t>(1'000, state.products)) return;
    filters_.forget(state.last_row);
    deleted_ = 0;
}

bool LocalIndex::needs_save(const std::string& view) const {
    const View& place = views_.at(view);
    return place.saved != place.sequence;
}

void LocalIndex::save() {
    const std::lock_guard<std::recursive_mutex> lock(changing_);
    std::vector<std::string> wanted;
    const auto collect = [&] {
        wanted.clear();
        for (const auto& [view, place] : views_)
            if (needs_save(view)) wanted.push_back(view);
    };
    collect();
    if (wanted.empty()) return;
    change([&] {
        collect();
        // Processes that read may still show what the snapshots before held, and want to catch up from there.
        std::uint64_t before = UINT64_MAX;
        for (const auto& [view, place] : views_) before = std::min(before, place.saved.value_or(0));
        remove_left(store_->folder());
        for (const std::string& view : wanted) {
            View& place = views_.at(view);
            const std::uint64_t sequence = place.sequence;
            try {
                std::atomic_load(&place.graph)
                    ->save(snapshot_path(view), {owner(), sequence, place.last_row});
            } catch (const std::runtime_error& error) {
                throw IndexFileError(std::string(error.what()) + "; no data is lost: the store has it");
            }
            place.saved = sequence;
        }
        store_->purge_deleted(before);
        store_->checkpoint();
    });
}

void LocalIndex::close() {
    const std::lock_guard<std::recursive_mutex> lock(changing_);
    for (auto& [view, place] : views_) std::atomic_store(&place.graph, std::shared_ptr<Graph>());
    store_->close();
}

}  // namespace uniecs::store
