// uniecs._core: the index core, the tokenizer, the image path and the networks for Python, nothing but
// conversions. Numpy arrays in and out, the GIL released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <thread>

#include "../src/bert_encoder.hpp"
#include "../src/crew.hpp"
#include "../src/distance.hpp"
#include "../src/item_fusion.hpp"
#include "../src/resize.hpp"
#include "../src/row_kernels.hpp"
#include "../src/signal_stack.hpp"
#include "../src/tokenizer.hpp"
#include "uniecs/graph.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// What runs without the GIL. Before Python 3.14 a thread that asks for it again while the interpreter ends is
// unwound, which nanobind's functions answer by aborting the process: it waits here for the end instead.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

  private:
    PyThreadState* state_;
};

using uniecs::Graph;
using uniecs::Row;
using uniecs::RowSet;
using uniecs::Span;

using RowArray = nb::ndarray<const Row, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
template <typename T>
using Numpy = nb::ndarray<nb::numpy, T>;

Span<const Row> rows_of(const RowArray& rows) { return {rows.data(), rows.size()}; }
Span<const float> floats_of(const Floats& floats) { return {floats.data(), floats.size()}; }

template <typename T>
Numpy<T> numpy(std::vector<T> values, std::initializer_list<std::size_t> shape) {
    auto* kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return Numpy<T>(kept->data(), shape, owner);
}

template <typename T>
Numpy<T> numpy(std::vector<T> values) {
    const std::size_t n = values.size();
    return numpy(std::move(values), {n});
}

const char* name(uniecs::Strategy strategy) {
    return strategy == uniecs::Strategy::graph            ? "graph"
           : strategy == uniecs::Strategy::filtered_graph ? "filtered graph"
                                                          : "exact";
}

std::optional<uniecs::Strategy> strategy_named(const std::optional<std::string>& wanted) {
    if (!wanted) return std::nullopt;
    for (auto each : {uniecs::Strategy::graph, uniecs::Strategy::filtered_graph, uniecs::Strategy::exact})
        if (*wanted == name(each)) return each;
    throw std::invalid_argument("strategy is '" + *wanted + "'; expected graph, filtered graph or exact");
}

uniecs::Storage storage_named(const std::string& wanted) {
    if (wanted == "float32") return uniecs::Storage::float32;
    if (wanted == "float16") return uniecs::Storage::float16;
    if (wanted == "int8") return uniecs::Storage::int8;
    throw std::invalid_argument("storage is '" + wanted + "'; expected float32, float16 or int8");
}

nb::dict described(const uniecs::Plan& plan) {
    nb::dict made;
    made["strategy"] = name(plan.strategy);
    made["ef"] = plan.ef;
    made["matching"] = plan.matching;
    made["compared"] = plan.compared;
    return made;
}

// Rows (n, k), 0 where there is none, scores (n, k), NaN there, and the plan of the first query.
nb::tuple search(const Graph& graph, const Floats& queries, std::size_t k, const RowSet* filter,
                 std::optional<std::size_t> matching, std::size_t ef,
                 const std::optional<std::string>& strategy, unsigned threads) {
    if (queries.ndim() != 2)
        throw std::invalid_argument("queries have " + std::to_string(queries.ndim()) +
                                    " dimensions; expected (n, dim)");
    const auto forced = strategy_named(strategy);
    uniecs::SearchOptions options;
    options.ef = ef;
    options.filter = filter;
    options.matching = matching.value_or(std::numeric_limits<std::size_t>::max());
    options.strategy = forced ? &*forced : nullptr;
    std::vector<uniecs::Hits> hits;
    {
        WithoutGil release;
        hits = graph.search_batch(floats_of(queries), k, options, threads);
    }
    std::size_t most = 0;
    for (const auto& each : hits) most = std::max(most, each.rows.size());
    std::vector<Row> rows(hits.size() * most);
    std::vector<float> scores(hits.size() * most, std::numeric_limits<float>::quiet_NaN());
    for (std::size_t i = 0; i < hits.size(); ++i) {
        std::copy(hits[i].rows.begin(), hits[i].rows.end(),
                  rows.begin() + static_cast<std::ptrdiff_t>(i * most));
        std::copy(hits[i].scores.begin(), hits[i].scores.end(),
                  scores.begin() + static_cast<std::ptrdiff_t>(i * most));
    }
    return nb::make_tuple(numpy(std::move(rows), {hits.size(), most}),
                          numpy(std::move(scores), {hits.size(), most}),
                          hits.empty() ? nb::dict() : described(hits.front().plan));
}

std::optional<Numpy<float>> vector(const Graph& graph, Row row) {
    std::vector<float> found(graph.config().dim);
    if (!graph.vector(row, found)) return std::nullopt;
    return numpy(std::move(found));
}

nb::dict stats(const Graph& graph) {
    const uniecs::GraphStats found = [&] {
        WithoutGil release;  // it waits for a change or a save under way
        return graph.stats();
    }();
    nb::dict made;
    made["live"] = found.live;
    made["removed"] = found.removed;
    made["free"] = found.free;
    made["vector_bytes"] = found.vector_bytes;
    made["link_bytes"] = found.link_bytes;
    made["other_bytes"] = found.other_bytes;
    made["top_layer"] = found.top_layer;
    return made;
}

// The texts stay where they are, in Python's strings: the tuple keeps them.
std::vector<std::vector<uniecs::TokenId>> encode_batch(const uniecs::Tokenizer& self,
                                                       const nb::sequence& texts) {
    const nb::tuple kept(texts);
    std::vector<std::string_view> views;
    views.reserve(kept.size());
    for (nb::handle each : kept) {
        Py_ssize_t bytes = 0;
        const char* text = PyUnicode_AsUTF8AndSize(each.ptr(), &bytes);
        if (!text) throw nb::python_error();
        views.emplace_back(text, static_cast<std::size_t>(bytes));
    }
    WithoutGil release;
    std::vector<std::vector<uniecs::TokenId>> ids;
    ids.reserve(views.size());
    for (std::string_view text : views) ids.push_back(self.encode(text));
    return ids;
}

using Image = nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

uniecs::PictureView picture_of(const Image& image, std::optional<std::pair<int, int>> whole, int scale) {
    constexpr std::size_t MOST = std::numeric_limits<int>::max();
    if (image.shape(2) != 3 || image.shape(0) > MOST || image.shape(1) > MOST)
        throw std::invalid_argument("image is not (H, W, 3)");
    const uniecs::Size size{static_cast<int>(image.shape(1)), static_cast<int>(image.shape(0))};
    return {image.data(), size, whole ? uniecs::Size{whole->first, whole->second} : size, scale};
}

using Pixels = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void pixel_values(const Image& image, const Pixels& out, const std::array<double, 3>& mean,
                  const std::array<double, 3>& std, std::optional<std::pair<int, int>> whole, int scale) {
    const auto picture = picture_of(image, whole, scale);
    constexpr std::size_t MOST = std::numeric_limits<int>::max();
    if (out.shape(0) != 3 || out.size() == 0 || out.shape(1) > MOST || out.shape(2) > MOST)
        throw std::invalid_argument("out is not (3, height_px, width_px)");
    const int height_px = static_cast<int>(out.shape(1)), width_px = static_cast<int>(out.shape(2));
    WithoutGil release;
    uniecs::pixel_values(picture, {height_px, width_px, mean, std}, {out.data(), out.size()});
}

Numpy<std::uint8_t> resize(const Image& image, int width, int height, const std::string& instructions,
                           std::optional<std::pair<int, int>> whole, int scale) {
    const auto picture = picture_of(image, whole, scale);
    std::vector<std::uint8_t> made;
    {
        WithoutGil release;
        made = uniecs::resize(picture, {width, height}, instructions);
    }
    return numpy(std::move(made), {static_cast<std::size_t>(height), static_cast<std::size_t>(width), 3});
}

uniecs::NamedArray copied(const Floats& array) {
    if (array.ndim() < 1 || array.ndim() > 2)
        throw std::invalid_argument("an array is neither a vector nor a matrix");
    const std::size_t rows = array.ndim() == 2 ? array.shape(0) : 1;
    return {rows, array.shape(array.ndim() - 1),
            std::vector<float>(array.data(), array.data() + array.size())};
}

uniecs::NamedArrays named(const nb::dict& arrays) {
    uniecs::NamedArrays made;
    for (const auto& [name, value] : arrays)
        made[nb::cast<std::string>(name)] = copied(nb::cast<Floats>(value));
    return made;
}

using Find = std::function<std::optional<Floats>(const std::string&)>;

std::optional<uniecs::NamedArray> found(const Find& find, const std::string& name) {
    const std::optional<Floats> array = find(name);
    return array ? std::optional(copied(*array)) : std::nullopt;
}

using Ids = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::optional<Numpy<float>> encode(const uniecs::BertEncoder& self, const Ids& ids, const Ids& mask) {
    const std::size_t texts = ids.shape(0), length = ids.shape(1);
    if (mask.shape(0) != texts || mask.shape(1) != length)
        throw std::invalid_argument("ids and mask are of different shapes");
    std::vector<float> tokens;
    bool done = false;
    {
        WithoutGil release;
        done = self.encode(ids.data(), mask.data(), texts, length, tokens);
    }
    if (!done) return std::nullopt;
    return numpy(std::move(tokens), {texts, length, self.embed_dim()});
}

uniecs::TokenRows token_rows(const std::optional<Floats>& tokens, std::size_t dim) {
    if (!tokens) return {};
    if (tokens->ndim() != 2 || tokens->shape(1) != dim)
        throw std::invalid_argument("tokens are not (count, " + std::to_string(dim) + ")");
    return {tokens->data(), tokens->shape(0)};
}

using ItemTokens = std::pair<std::optional<Floats>, std::optional<Floats>>;

Numpy<float> embed(const uniecs::ItemFusion& self, const std::vector<ItemTokens>& tokens) {
    const std::size_t dim = self.embed_dim();
    std::vector<uniecs::ItemFusion::Item> items;
    for (const auto& [image, text] : tokens) items.push_back({token_rows(image, dim), token_rows(text, dim)});
    std::vector<float> made(items.size() * dim);
    {
        WithoutGil release;
        self.embed(items, made.data());
    }
    return numpy(std::move(made), {items.size(), dim});
}

}  // namespace

NB_MODULE(_core, module) {
    module.doc() = "The native index core, tokenizer, image path, text encoder and fusion (sdk/cpp).";
    module.def("instructions", &uniecs::instructions,
               "The vector instructions in use: avx512, avx2 or portable.");
    module.def("resize_instructions", &uniecs::supported_resize_kernels,
               "The vector instructions that `resize` can use here, the fastest first.");
    module.def("row_instructions", &uniecs::supported_row_kernels,
               "The vector instructions that `BertEncoder` and `ItemFusion` can use here, the "
               "fastest first.");
    module.def(
        "has_byte_products", &uniecs::has_byte_products,
        "Whether an engine's sums of int8 products are right on this CPU: with VNNI, or if it is no x86.");
    module.def(
        "keeping_signal_stack",
        [](const nb::callable& call) {
            const uniecs::KeptSignalStack kept;
            return call();
        },
        "call"_a, "What `call` gives; this thread's stack for signal handlers stays as it is.");
    module.def("resize", &resize, "image"_a, "width"_a, "height"_a, "instructions"_a = "",
               "whole"_a = nb::none(), "scale"_a = 1);
    module.def("pixel_values", &pixel_values, "image"_a, "out"_a.noconvert(), "mean"_a, "std"_a,
               "whole"_a = nb::none(), "scale"_a = 1);
    nb::exception<uniecs::SnapshotError>(module, "SnapshotError");
    nb::exception<uniecs::BundleError>(module, "BundleError");

    nb::class_<uniecs::Tokenizer>(module, "Tokenizer")
        .def(
            "__init__",
            [](uniecs::Tokenizer* self, const nb::bytes& tokenizer_json, std::size_t max_tokens) {
                new (self) uniecs::Tokenizer({tokenizer_json.c_str(), tokenizer_json.size()}, max_tokens);
            },
            "tokenizer_json"_a, "max_tokens"_a)
        .def_prop_ro("vocab_size", &uniecs::Tokenizer::vocab_size)
        .def("encode_batch", &encode_batch, "texts"_a);

    nb::class_<uniecs::Crew>(module, "Crew").def(nb::init<std::size_t>(), "threads"_a);

    nb::class_<uniecs::ItemFusion>(module, "ItemFusion")
        .def(
            "__init__",
            [](uniecs::ItemFusion* self, const nb::dict& arrays, std::size_t heads,
               std::shared_ptr<uniecs::Crew> crew, const std::string& instructions) {
                new (self) uniecs::ItemFusion(named(arrays), heads, std::move(crew), instructions);
            },
            "arrays"_a, "heads"_a, "crew"_a, "instructions"_a = "")
        .def("embed", &embed, "items"_a)
        .def_prop_ro_static("FEW_TOKENS",
                            [](nb::handle) { return std::size_t{uniecs::ItemFusion::FEW_TOKENS}; });

    nb::class_<uniecs::BertEncoder>(module, "BertEncoder")
        .def(
            "__init__",
            [](uniecs::BertEncoder* self, const Find& find, std::size_t width, float epsilon,
               std::shared_ptr<uniecs::Crew> crew, const std::string& instructions) {
                new (self) uniecs::BertEncoder([&](const std::string& name) { return found(find, name); },
                                               width, epsilon, std::move(crew), instructions);
            },
            "find"_a, "width"_a, "epsilon"_a, "crew"_a, "instructions"_a = "")
        .def("encode", &encode, "input_ids"_a, "attention_mask"_a)
        .def_prop_ro("max_tokens", &uniecs::BertEncoder::max_tokens);

    nb::class_<RowSet>(module, "RowSet")
        .def(
            "__init__", [](RowSet* self, const RowArray& rows) { new (self) RowSet(rows_of(rows)); },
            "rows"_a)
        .def("insert", &RowSet::insert, "row"_a)
        .def("__contains__", &RowSet::contains, "row"_a)
        .def("__len__", &RowSet::count)
        .def("rows", [](const RowSet& self) { return numpy(self.rows()); })
        .def("__and__", &RowSet::intersection, "other"_a)
        .def("__or__", &RowSet::united, "other"_a)
        .def("complement", &RowSet::complement, "last"_a);

    nb::class_<Graph>(module, "Graph")
        .def(
            "__init__",
            [](Graph* self, std::uint32_t dim, std::uint32_t M, std::uint32_t ef_construction,
               const std::string& storage) {
                new (self) Graph({dim, M, ef_construction, storage_named(storage)});
            },
            "dim"_a, "M"_a, "ef_construction"_a, "storage"_a)
        .def_static(
            "load",
            [](const std::string& path, std::uint32_t dim, std::uint32_t M, std::uint32_t ef_construction,
               const std::string& storage, const std::string& model_id) {
                uniecs::SnapshotInfo info;
                const uniecs::GraphConfig config{dim, M, ef_construction, storage_named(storage)};
                auto loaded = [&] {
                    WithoutGil release;
                    return Graph::load(path, config, model_id, &info);
                }();
                return nb::make_tuple(nb::cast(std::move(loaded)), info.sequence, info.last_row);
            },
            "path"_a, "dim"_a, "M"_a, "ef_construction"_a, "storage"_a, "model_id"_a)
        .def(
            "save",
            [](const Graph& self, const std::string& path, const std::string& model_id,
               std::uint64_t sequence, Row last_row) { self.save(path, {model_id, sequence, last_row}); },
            "path"_a, "model_id"_a, "sequence"_a, "last_row"_a, nb::call_guard<WithoutGil>())
        .def("__len__", &Graph::size)
        .def("__contains__", &Graph::contains, "row"_a)
        .def("rows", [](const Graph& self) { return numpy(self.rows()); })
        .def(
            "apply",
            [](Graph& self, const RowArray& removed, const RowArray& rows, const Floats& vectors,
               unsigned threads) {
                WithoutGil release;
                self.apply(rows_of(removed), rows_of(rows), floats_of(vectors), threads);
            },
            "removed"_a, "rows"_a, "vectors"_a, "threads"_a)
        .def("repair", &Graph::repair, "threads"_a, nb::call_guard<WithoutGil>())
        .def("search", &search, "queries"_a, "k"_a, "filter"_a = nullptr, "matching"_a = nb::none(),
             "ef"_a = 0, "strategy"_a = nb::none(), "threads"_a = 1)
        .def("vector", &vector, "row"_a)
        .def("stats", &stats);
}
