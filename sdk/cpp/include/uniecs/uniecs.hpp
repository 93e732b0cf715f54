// uniecs: embeddings of products and queries, by words, a photo or both; the same bundles and the same
// embeddings as the Python package.
//
//   uniecs::Encoder encoder = uniecs::Encoder::load("bundles/mini");
//   std::vector<float> x = encoder.encode({{"red kurta", {}}, {{}, uniecs::Image::file("a.jpg")}});
//   // x: 2 x embed_dim
//
// An Encoder may be moved, not copied; any number of threads may use one at once. Every error is a
// uniecs::Error (errors.hpp). The C interface to the same is uniecs.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "uniecs/errors.hpp"
#include "uniecs/graph.hpp"  // Span

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

// A product or a query: a text (UTF-8), an image, or both.
struct Item {
    std::optional<std::string> text;
    std::optional<Image> image;
};

struct EncoderOptions {
    std::string precision = "fp32";  // or "bf16", on CPUs that have it
    unsigned threads = 0;            // CPU threads of the engine; 0 leaves their number to it
};

class Encoder {
  public:
    // Read and verify a bundle folder (docs/bundle-format.md). Throws BundleError, BackendError.
    static Encoder load(const std::string& bundle, const EncoderOptions& options = {});

    Encoder(Encoder&&) noexcept;
    Encoder& operator=(Encoder&&) noexcept;
    ~Encoder();

    std::size_t embed_dim() const;
    const std::string& model_id() const;

    // Unit embeddings (items x embed_dim), in the order of the items. Throws Error for the first item that
    // cannot be used, its position in the message: input, text, image; and backend.
    std::vector<float> encode(const std::vector<Item>& items, std::size_t batch_size = 32) const;

    // As encode, but an item that cannot be used has its error in `errors` (one for each item, empty for
    // none) and NaN for its embedding.
    std::vector<float> encode(const std::vector<Item>& items, std::vector<std::exception_ptr>& errors,
                              std::size_t batch_size = 32) const;

  private:
    class Impl;
    explicit Encoder(std::unique_ptr<const Impl> impl);
    std::unique_ptr<const Impl> impl_;
};

}  // namespace uniecs
