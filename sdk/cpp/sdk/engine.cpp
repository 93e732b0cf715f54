#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>

#include "../store/local_index.hpp"
#include "products.hpp"
#include "uniecs/uniecs.hpp"

namespace uniecs {

namespace {

constexpr std::size_t CHUNK = 64;  // products embedded together: bounds the memory that their images take
constexpr std::size_t MOST_HITS = std::size_t{1} << 30;

using Keys = std::set<std::string>;

Hit hit_of(const store::Found& found) {
    const store::Record& record = *found.product;
    Product product{record.id, record.title, {}, record.attributes_json};
    if (record.image) product.image = Image::file(*record.image);
    return {record.id, found.score, std::move(product)};
}

std::vector<Hit> hits_of(const std::vector<store::Found>& found) {
    std::vector<Hit> hits;
    for (const store::Found& each : found) hits.push_back(hit_of(each));
    return hits;
}

void check_known(const std::string& id, bool known, bool held) {
    if (known && !held) throw InputError("id '" + id + "' is not in the index; add it with add()");
    if (!known && held) throw InputError("id '" + id + "' is already in the index; replace it with update()");
}

std::string message_of(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(error);
    } catch (const std::exception& found) {
        return found.what();
    }
}

}  // namespace

class SearchEngine::Impl {
  public:
    Impl(std::unique_ptr<store::LocalIndex> index, Encoder encoder)
        : index_(std::move(index)), encoder_(std::move(encoder)) {}

    const std::vector<std::string>& views() const { return index_->header().config.views; }

    std::size_t size() const { return check_open(), index_->size(); }

    AddReport put(Span<const Product> products, bool known) {
        check_open();
        AddReport report;
        for (std::size_t first = 0; first < products.size(); first += CHUNK) {
            const Span<const Product> chunk(products.data() + first,
                                            std::min(CHUNK, products.size() - first));
            std::vector<std::exception_ptr> errors(chunk.size());
            std::vector<store::NewProduct> prepared = embed(chunk, known, errors);
            insert(prepared, known, errors);
            for (std::size_t i = 0; i < chunk.size(); ++i) {
                if (errors[i])
                    report.rejected.push_back({first + i, chunk[i].id, errors[i], message_of(errors[i])});
                else
                    ++report.added;
            }
        }
        return report;
    }

    std::size_t remove(Span<const std::string> ids) {
        const std::lock_guard<std::mutex> lock(writing_);
        check_open();
        const Keys wanted(ids.begin(), ids.end()), held = index_->known({wanted.begin(), wanted.end()});
        for (const std::string& id : ids)
            if (!held.count(id))
                throw InputError(std::to_string(wanted.size() - held.size()) + " of " +
                                 std::to_string(wanted.size()) + " ids are not in the index, such as '" + id +
                                 "'");
        if (!wanted.empty()) index_->remove({wanted.begin(), wanted.end()});
        return wanted.size();
    }

    std::vector<std::vector<Hit>> search(Span<const Item> queries, const QueryOptions& options,
                                         std::vector<std::exception_ptr>* errors) {
        check_open();
        const std::string& view = checked_view(options.view);
        const std::size_t k = checked_k(options.k);
        const std::optional<store::Filter> where = checked_where(options.where);
        const std::size_t dim = encoder_.embed_dim();
        std::vector<std::vector<Hit>> hits(queries.size());
        if (queries.empty()) return hits;
        std::vector<float> vectors = errors ? encoder_.encode(queries, *errors) : encoder_.encode(queries);
        std::vector<std::size_t> good;
        for (std::size_t i = 0; i < queries.size(); ++i) {
            if (errors && (*errors)[i]) continue;
            if (good.size() < i) std::copy_n(&vectors[i * dim], dim, &vectors[good.size() * dim]);
            good.push_back(i);
        }
        if (good.empty()) return hits;
        const Span<const float> asked(vectors.data(), good.size() * dim);
        const auto found = index_->search(view, asked, k, where ? &*where : nullptr);
        for (std::size_t i = 0; i < good.size(); ++i) hits[good[i]] = hits_of(found[i]);
        return hits;
    }

    std::vector<Hit> similar(std::string_view id, const QueryOptions& options) {
        check_open();
        const std::string& view = checked_view(options.view);
        const std::size_t k = checked_k(options.k);
        const std::optional<store::Filter> where = checked_where(options.where);
        const std::vector<float> vector = index_->vector(std::string(id), view);
        std::vector<Hit> hits = hits_of(index_->search(view, vector, k + 1, where ? &*where : nullptr)[0]);
        hits.erase(std::remove_if(hits.begin(), hits.end(), [&](const Hit& hit) { return hit.id == id; }),
                   hits.end());
        if (hits.size() > k) hits.erase(hits.begin() + static_cast<std::ptrdiff_t>(k), hits.end());
        return hits;
    }

    void save() {
        const std::lock_guard<std::mutex> lock(writing_);
        check_open();
        index_->save();
    }

    void close() {
        const std::lock_guard<std::mutex> lock(writing_);
        if (!closed_.exchange(true)) index_->close();
    }

  private:
    void check_open() const {
        if (closed_) throw InputError("the engine is closed; open the index again with SearchEngine::open");
        if (process_ != ::getpid())
            throw InputError(
                "the engine was opened before this process was forked; open the index again in it");
    }

    const std::string& checked_view(const std::string& view) const {
        if (view.empty()) return views()[0];
        const auto found = std::find(views().begin(), views().end(), view);
        if (found != views().end()) return *found;
        std::string known;
        for (const std::string& each : views()) known += (known.empty() ? "" : ", ") + each;
        throw InputError("view is '" + view + "'; this index has " + known);
    }

    static std::size_t checked_k(std::size_t k) {
        if (k == 0) throw InputError("k is 0; expected at least 1");
        return std::min(k, MOST_HITS);
    }

    // Throws FilterError for a filter that is not usable, or names a key that no product has.
    std::optional<store::Filter> checked_where(const std::string& where) {
        if (where.empty()) return std::nullopt;
        store::Filter filter = store::parse_where(where);
        const Keys wanted = store::filter_keys(filter);
        const auto has_all = [&](const Keys& keys) {
            return std::includes(keys.begin(), keys.end(), wanted.begin(), wanted.end());
        };
        if (has_all(*std::atomic_load(&keys_)) || index_->size() == 0) return filter;
        const auto keys = std::make_shared<const Keys>(index_->attribute_keys());
        std::atomic_store(&keys_, keys);
        if (has_all(*keys)) return filter;
        const auto unknown =
            std::find_if(wanted.begin(), wanted.end(), [&](auto& key) { return !keys->count(key); });
        std::string known;
        for (const std::string& key : *keys) known += (known.empty() ? "" : ", ") + key;
        throw FilterError("where has the unknown key '" + *unknown +
                          "'; known keys: " + (known.empty() ? "none" : known));
    }

    // What is to be stored of each product that has no error.
    std::vector<store::NewProduct> embed(Span<const Product> chunk, bool known,
                                         std::vector<std::exception_ptr>& errors) const {
        std::vector<std::string> ids;
        for (const Product& product : chunk) ids.push_back(product.id);
        const Keys held = index_->known(ids);
        std::vector<store::NewProduct> prepared(chunk.size());
        std::vector<Item> items;
        std::vector<std::map<std::string, std::size_t>> plans(chunk.size());  // view -> place in `items`
        for (std::size_t i = 0; i < chunk.size(); ++i) {
            try {
                prepared[i].record = record_of(chunk[i]);
                check_known(chunk[i].id, known, held.count(chunk[i].id) > 0);
                plans[i] = plan(chunk[i], prepared[i].record, items);
            } catch (const std::exception&) {
                errors[i] = std::current_exception();
            }
        }
        if (items.empty()) return prepared;
        std::vector<std::exception_ptr> failed;
        const std::vector<float> vectors = encoder_.encode(items, failed);
        const auto dim = static_cast<std::ptrdiff_t>(encoder_.embed_dim());
        for (std::size_t i = 0; i < chunk.size(); ++i)
            for (const auto& [view, place] : plans[i]) {
                const auto start = vectors.begin() + static_cast<std::ptrdiff_t>(place) * dim;
                prepared[i].vectors[view].assign(start, start + dim);
                if (failed[place] && !errors[i]) errors[i] = failed[place];
            }
        return prepared;
    }

    // Append to `items` what to embed of a product, each thing once; returns view -> place there.
    std::map<std::string, std::size_t> plan(const Product& product, const store::Record& record,
                                            std::vector<Item>& items) const {
        std::map<std::string, std::size_t> plan;
        std::map<std::pair<bool, bool>, std::size_t> places;
        for (const std::string& view : views()) {
            const std::pair<bool, bool> kind{view != "image" && record.title,
                                             view != "text" && has_image(product)};
            if (!kind.first && !kind.second) continue;
            const auto [place, is_new] = places.emplace(kind, items.size());
            if (is_new) {
                items.emplace_back();
                if (kind.first) items.back().text = record.title;
                if (kind.second) items.back().image = product.image;
            }
            plan[view] = place->second;
        }
        if (plan.empty())
            throw InputError("product '" + product.id + "' has nothing to embed for the views of this index");
        return plan;
    }

    // Put what can be put, all in one change; `errors` says why the others were left out.
    void insert(std::vector<store::NewProduct>& prepared, bool known,
                std::vector<std::exception_ptr>& errors) {
        const std::lock_guard<std::mutex> lock(writing_);
        check_open();
        std::vector<std::string> ids;
        for (const auto& each : prepared) ids.push_back(each.record.id);
        Keys held = index_->known(ids), taken;  // again: another thread may have changed it since
        std::vector<store::NewProduct> items;
        for (std::size_t i = 0; i < prepared.size(); ++i) {
            if (errors[i]) continue;
            const std::string& id = prepared[i].record.id;
            try {
                check_known(id, known, held.count(id) > 0 || taken.count(id) > 0);
            } catch (const Error&) {
                errors[i] = std::current_exception();
                continue;
            }
            // Of two updates in one chunk the last counts.
            if (!taken.insert(id).second)
                items.erase(std::find_if(items.begin(), items.end(),
                                         [&](auto& each) { return each.record.id == id; }));
            items.push_back(std::move(prepared[i]));
        }
        if (!items.empty()) index_->put(items);
    }

    const std::unique_ptr<store::LocalIndex> index_;
    const Encoder encoder_;
    const pid_t process_ = ::getpid();
    std::atomic<bool> closed_{false};
    std::mutex writing_;
    std::shared_ptr<const Keys> keys_ =
        std::make_shared<const Keys>();  // attributes met so far, by std::atomic_load
};

SearchEngine::SearchEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SearchEngine::SearchEngine(SearchEngine&&) noexcept = default;
SearchEngine& SearchEngine::operator=(SearchEngine&&) noexcept = default;
SearchEngine::~SearchEngine() = default;

SearchEngine SearchEngine::create(const std::string& path, const Encoder& encoder, const IndexConfig& config,
                                  const OpenOptions& options) {
    store::Header header;
    header.model_id = encoder.model_id();
    header.embed_dim = encoder.embed_dim();
    header.bundle_path = encoder.folder();
    header.config = config;
    return SearchEngine(
        std::make_unique<Impl>(store::LocalIndex::create(path, header, options), Encoder(encoder.impl_)));
}

SearchEngine SearchEngine::open(const std::string& path, const Encoder& encoder, const OpenOptions& options) {
    auto index = store::LocalIndex::open(path, options);
    const store::Header& header = index->header();
    if (header.model_id != encoder.model_id() || header.embed_dim != encoder.embed_dim())
        throw ModelMismatchError(path + " holds vectors of " + header.model_id + " (" +
                                 std::to_string(header.embed_dim) + " wide), the encoder is " +
                                 encoder.model_id() + " (" + std::to_string(encoder.embed_dim()) +
                                 " wide): open it with its own model, or index anew");
    return SearchEngine(std::make_unique<Impl>(std::move(index), Encoder(encoder.impl_)));
}

const std::vector<std::string>& SearchEngine::views() const { return impl_->views(); }
std::size_t SearchEngine::size() const { return impl_->size(); }
AddReport SearchEngine::add(Span<const Product> products) { return impl_->put(products, false); }
AddReport SearchEngine::update(Span<const Product> products) { return impl_->put(products, true); }
std::size_t SearchEngine::remove(Span<const std::string> ids) { return impl_->remove(ids); }
void SearchEngine::save() { impl_->save(); }
void SearchEngine::close() { impl_->close(); }

std::vector<Hit> SearchEngine::search(const Item& query, const QueryOptions& options) const {
    std::vector<std::exception_ptr> errors;
    std::vector<std::vector<Hit>> hits = impl_->search({&query, 1}, options, &errors);
    if (errors[0]) std::rethrow_exception(errors[0]);
    return std::move(hits[0]);
}

std::vector<std::vector<Hit>> SearchEngine::search_batch(Span<const Item> queries,
                                                         const QueryOptions& options) const {
    return impl_->search(queries, options, nullptr);
}

std::vector<std::vector<Hit>> SearchEngine::search_batch(Span<const Item> queries,
                                                         const QueryOptions& options,
                                                         std::vector<std::exception_ptr>& errors) const {
    errors.assign(queries.size(), nullptr);
    return impl_->search(queries, options, &errors);
}

std::vector<Hit> SearchEngine::similar(std::string_view id, const QueryOptions& options) const {
    return impl_->similar(id, options);
}

}  // namespace uniecs
