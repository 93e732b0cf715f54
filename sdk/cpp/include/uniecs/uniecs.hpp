// uniecs: products found by words, a photo or both; the same bundles, the same embeddings, the same index
// folders and the same hits as the Python package.
//
//   auto encoder = uniecs::Encoder::load("bundles/mini");
//   auto engine = uniecs::SearchEngine::create("shop.uniecs", encoder);
//   engine.add({{"1", "red kurta", uniecs::Image::file("1.jpg"), R"({"price": 20})"}});
//   const char* cheap = R"({"price": {"$between": [null, 50]}})";
//   for (const uniecs::Hit& hit : engine.search({"kurta", {}}, {10, {}, cheap}))
//       std::printf("%.4f %s\n", hit.score, hit.id.c_str());
//   engine.save();
//
// An Encoder and a SearchEngine may be moved, not copied; what was moved from may only be assigned to or
// destroyed. Any number of threads may use one at once. A Span is made of a std::vector, a std::array, a list
// in braces, or a pointer and a size. Every error is a uniecs::Error (errors.hpp). The C interface to the
// same is uniecs.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "uniecs/errors.hpp"
#include "uniecs/graph.hpp"  // Span, Storage

namespace uniecs {

// An image: the path of a file, or the bytes of one, which the caller keeps until the call returns.
class Image {
  public:
    static Image file(std::string path) { return Image(std::move(path), {}); }
    static Image bytes(std::string_view data) { return Image({}, data); }

    const std::string& path() const { return path_; }
    std::string_view data() const { return data_; }

  private:
    Image(std::string path, std::string_view data) : path_(std::move(path)), data_(data) {}

    std::string path_;
    std::string_view data_;
};

// What to embed, or to search for: a text (UTF-8), an image, or both. It owns its text, which is short.
struct Item {
    std::optional<std::string> text;
    std::optional<Image> image;
};

struct EncoderOptions {
    std::string precision = "fp32";    // or "bf16" or "int8", where CPU and bundle have it; tensorrt: "fp16"
    unsigned threads = 0;              // CPU threads of the engine; 0 leaves their number to it
    std::string backend = "openvino";  // or "tensorrt", in a library built with it: engines of `uniecs build`
};

class Encoder {
  public:
    // Read and verify a bundle folder (docs/bundle-format.md). Throws BundleError, BackendError,
    // EngineMismatchError.
    static Encoder load(const std::string& bundle, const EncoderOptions& options = {});

    Encoder(Encoder&&) noexcept;
    Encoder& operator=(Encoder&&) noexcept;
    ~Encoder();

    std::size_t embed_dim() const;
    const std::string& model_id() const;
    const std::string& bundle() const;     // the folder, as it was given
    const std::string& backend() const;    // "openvino" or "tensorrt"
    const std::string& device() const;     // "cpu" or "cuda"
    const std::string& precision() const;  // "fp32", "bf16", "int8" or "fp16"

    // Unit embeddings (items x embed_dim), in the order of the items. Throws Error for the first item that
    // cannot be used, its position in the message: input, text, image; and backend.
    std::vector<float> encode(Span<const Item> items, std::size_t batch_size = 32) const;

    // As encode, but an item that cannot be used has its error in `errors` (one for each item, empty for
    // none) and NaN for its embedding.
    std::vector<float> encode(Span<const Item> items, std::vector<std::exception_ptr>& errors,
                              std::size_t batch_size = 32) const;

  private:
    class Impl;
    friend class SearchEngine;
    explicit Encoder(std::shared_ptr<const Impl> impl);
    const std::string& folder() const;  // the bundle's, as an absolute path
    std::shared_ptr<const Impl> impl_;
};

// A product, with at least one of title and image; a blank title or path is none. Of a hit, `image` is the
// path, where it had one.
struct Product {
    std::string id;
    std::optional<std::string> title;
    std::optional<Image> image;
    std::string attributes =
        "{}";  // a JSON object of strings, numbers, true, false, null, and arrays of these
};

struct Hit {
    std::string id;
    float score;  // cosine similarity
    Product product;
};

// A row that was left out: its position, its id, and why.
struct Rejected {
    std::size_t row;
    std::string id;
    std::exception_ptr error;
    std::string message;
};

struct AddReport {
    std::size_t added = 0;
    std::vector<Rejected> rejected;
};

// What an index is created with.
struct IndexConfig {
    std::vector<std::string> views{"multimodal"};  // any of multimodal, image, text; the first is the default
    std::uint32_t M = 16;                          // HNSW's links a node, 2 to 512
    std::uint32_t ef_construction = 200;           // and breadth of building, M to 10000
    Storage storage = Storage::float32;            // how the graph keeps vectors
};

// full: a change is on the disk when its method returns. batch: it survives the end of the process, but
// perhaps not a power cut.
enum class Durability { full, batch };

struct OpenOptions {
    Durability durability = Durability::full;
    // Told when a graph has to be built from the store; by default a line on stderr.
    std::function<void(const std::string&)> warning;
};

struct QueryOptions {
    std::size_t k = 10;
    std::string view;   // empty: the index's first
    std::string where;  // a filter as JSON (docs/cpp.md); empty: none
};

// A searchable catalogue of products in an index folder (docs/index-format.md), which Python reads and writes
// too. What add, update and remove did is durable when they return; `save` only makes the next opening fast.
// One process writes an index at a time, from its first change on, any number read it and follow within a
// second.
class SearchEngine {
  public:
    // The encoder may be destroyed before the engine. Both throw IndexFileError for a folder that is taken,
    // missing, damaged or of a newer format, and InputError for a path or settings that cannot be used, open
    // ModelMismatchError for vectors of another model.
    static SearchEngine create(const std::string& path, const Encoder& encoder,
                               const IndexConfig& config = {}, const OpenOptions& options = {});
    static SearchEngine open(const std::string& path, const Encoder& encoder,
                             const OpenOptions& options = {});

    SearchEngine(SearchEngine&&) noexcept;
    SearchEngine& operator=(SearchEngine&&) noexcept;
    ~SearchEngine();  // closes

    const std::vector<std::string>& views() const;
    std::size_t size() const;

    // Embed and index new products. One that cannot be used (a known id, an image that cannot be read,
    // nothing for any view) is reported as rejected, and the others go on. `update` replaces products whole.
    AddReport add(Span<const Product> products);
    AddReport update(Span<const Product> products);
    // How many there were. Throws InputError for an unknown id, and removes none.
    std::size_t remove(Span<const std::string> ids);

    // The k products most similar, best first. Throws TextError, ImageError, FilterError, InputError.
    std::vector<Hit> search(const Item& query, const QueryOptions& options = {}) const;
    // For many queries, embedded together; the second has the errors of queries that cannot be read in
    // `errors` (one for each query, empty for none), and no hits for them.
    std::vector<std::vector<Hit>> search_batch(Span<const Item> queries,
                                               const QueryOptions& options = {}) const;
    std::vector<std::vector<Hit>> search_batch(Span<const Item> queries, const QueryOptions& options,
                                               std::vector<std::exception_ptr>& errors) const;
    // The products most similar to the product `id`, itself left out.
    std::vector<Hit> similar(std::string_view id, const QueryOptions& options = {}) const;

    // Write the graphs as they are, so that the next opening need not build them; no data depends on it.
    void save();
    // Let another process write; any further use throws InputError.
    void close();

  private:
    class Impl;
    explicit SearchEngine(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// [{"id": ..., "score": ..., "title": ..., "image": ..., "attributes": {...}}, ...]
std::string to_json(Span<const Hit> hits);

}  // namespace uniecs
