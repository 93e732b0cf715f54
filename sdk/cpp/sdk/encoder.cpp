#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <new>
#include <utility>

#include "../images/decode.hpp"
#include "../src/tokenizer.hpp"
#include "backend.hpp"
#include "bundle.hpp"
#include "uniecs/uniecs.hpp"

namespace uniecs {

namespace {

// Texts are padded to a multiple of this: engines prepare for each new length anew, and keep what they
// prepared.
constexpr std::size_t TEXT_STEP = 4;
// What stands where the attention mask is 0: no graph reads it.
constexpr std::int64_t PAD = 0;

Span<const std::uint8_t> bytes_of(std::string_view data) {
    return {reinterpret_cast<const std::uint8_t*>(data.data()), data.size()};
}

// The bytes of an image file; of a file of another kind only the first are read.
std::string read_file(const std::string& path) {
    const ImageError unreadable("it does not exist or cannot be read; expected an image file");
    std::error_code failed;
    const std::uintmax_t size = std::filesystem::file_size(path, failed);
    if (failed) throw unreadable;  // a folder or a pipe as well
    std::ifstream file(path, std::ios::binary);
    std::string data;
    const auto read_up_to = [&](std::size_t end) {
        const std::size_t start = data.size();
        data.resize(end);
        if (!file.read(data.data() + start, static_cast<std::streamsize>(end - start))) throw unreadable;
    };
    read_up_to(std::min<std::uintmax_t>(size, IMAGE_KIND_BYTES));
    check_image_kind(bytes_of(data));
    read_up_to(size);
    return data;
}

// float32 (3, height_px, width_px) of an image into `out`.
void read_pixel_values(const Image& image, const ImagePreprocessing& preprocessing, float* out) {
    if (image.path().find('\0') != std::string::npos)  // the file system would take what is before it
        throw ImageError("the path of the image has a zero byte in it; expected the path of a file");
    const std::string name = image.path().empty() ? "" : "image '" + image.path() + "': ";
    try {
        const std::string kept = name.empty() ? "" : read_file(image.path());
        const std::vector<float> pixels =
            image_pixel_values(bytes_of(name.empty() ? image.data() : kept), preprocessing);
        std::copy(pixels.begin(), pixels.end(), out);
    } catch (const ImageError& error) {
        throw ImageError(name + error.what());
    } catch (const std::bad_alloc&) {
        throw ImageError(name + "there is not enough memory");
    }
}

struct Prepared {
    std::size_t position;
    std::vector<std::int64_t> ids;  // empty: no text
    const Image* image;             // nullptr: none
};

Int8Recipe int8_recipe(const Bundle& bundle) {
    if (bundle.int8_json.empty())
        throw BackendError("bundle " + bundle.model_id +
                           " has no int8 variant: make one with `uniecs quantize`, or use bf16 or fp32");
    return parse_int8_recipe(bundle.int8_json, bundle.model_id);
}

// It takes the graphs out of the bundle.
std::unique_ptr<Backend> make_backend(Bundle& bundle, const EncoderOptions& options) {
    Graphs graphs = std::exchange(bundle.graphs, {});
    if (options.backend == "openvino") {
        if (options.precision == "int8") graphs.int8 = int8_recipe(bundle);
        return openvino_backend(std::move(graphs), bundle.embed_dim, options.precision, options.threads);
    }
    if (options.backend != "tensorrt")
        throw BackendError("backend is '" + options.backend + "'; expected openvino or tensorrt");
    if (options.precision != "fp16")
        throw BackendError("the tensorrt backend runs in fp16, not in " + options.precision);
#ifdef UNIECS_TENSORRT
    return tensorrt_backend(bundle);
#else
    throw BackendError("this library was built without TensorRT: configure it with -DUNIECS_TENSORRT=ON");
#endif
}

}  // namespace

class Encoder::Impl {
  public:
    Impl(const std::string& folder, const EncoderOptions& options)
        : given(folder),
          options(options),
          device(options.backend == "tensorrt" ? "cuda" : "cpu"),
          bundle(open_bundle(folder)),
          tokenizer(bundle.tokenizer_json, bundle.max_tokens),
          backend(make_backend(bundle, options)) {}

    std::vector<float> encode(Span<const Item> items, std::vector<std::exception_ptr>& errors,
                              std::size_t batch_size) const {
        if (batch_size == 0) throw InputError("batch_size is 0; expected at least 1");
        errors.assign(items.size(), nullptr);
        std::vector<float> out(items.size() * dim(), std::numeric_limits<float>::quiet_NaN());
        std::map<std::pair<bool, bool>, std::vector<Prepared>>
            groups;  // by what items have: a batch has one kind
        for (std::size_t i = 0; i < items.size(); ++i) prepare(items[i], i, groups, errors[i]);
        for (auto& [kind, group] : groups) {
            std::stable_sort(group.begin(), group.end(), [](const Prepared& a, const Prepared& b) {
                return a.ids.size() < b.ids.size();
            });
            for (std::size_t first = 0; first < group.size(); first += batch_size) {
                const std::size_t last = std::min(group.size(), first + batch_size);
                run({group.data() + first, last - first}, kind.first, kind.second, errors, out);
            }
        }
        return out;
    }

    std::size_t dim() const { return bundle.embed_dim; }

    const std::string given;
    const EncoderOptions options;
    const std::string device;
    Bundle bundle;
    const Tokenizer tokenizer;
    const std::unique_ptr<Backend> backend;

  private:
    void prepare(const Item& item, std::size_t position,
                 std::map<std::pair<bool, bool>, std::vector<Prepared>>& groups,
                 std::exception_ptr& error) const {
        try {
            if (!item.text && !item.image)
                throw InputError("the item has neither text nor image; expected at least one");
            Prepared prepared{position, {}, item.image ? &*item.image : nullptr};
            if (item.text) {
                check_text(*item.text);
                const std::vector<TokenId> ids = tokenizer.encode(*item.text);
                prepared.ids.assign(ids.begin(), ids.end());
            }
            groups[{item.text.has_value(), item.image.has_value()}].push_back(std::move(prepared));
        } catch (const std::exception&) {
            error = std::current_exception();
        }
    }

    void run(Span<const Prepared> all, bool texts, bool images, std::vector<std::exception_ptr>& errors,
             std::vector<float>& out) const {
        const ImagePreprocessing& p = bundle.preprocessing;
        const auto height = static_cast<std::size_t>(p.height_px),
                   width = static_cast<std::size_t>(p.width_px);
        const std::size_t plane = 3 * height * width;
        std::vector<const Prepared*> items;
        std::vector<float> pixels;
        for (const Prepared& each : all) {
            if (images) {
                pixels.resize((items.size() + 1) * plane);
                try {
                    read_pixel_values(*each.image, p, pixels.data() + items.size() * plane);
                } catch (const std::exception&) {
                    errors[each.position] = std::current_exception();
                    continue;
                }
            }
            items.push_back(&each);
        }
        if (items.empty()) return;
        Batch batch;
        batch.size = items.size();
        std::vector<std::int64_t> ids, mask;
        if (texts) {
            std::size_t longest = 0;
            for (const Prepared* each : items) longest = std::max(longest, each->ids.size());
            batch.tokens = std::min((longest + TEXT_STEP - 1) / TEXT_STEP * TEXT_STEP, bundle.max_tokens);
            ids.assign(batch.size * batch.tokens, PAD);
            mask.assign(ids.size(), 0);
            for (std::size_t row = 0; row < items.size(); ++row) {
                std::copy(items[row]->ids.begin(), items[row]->ids.end(), &ids[row * batch.tokens]);
                std::fill_n(&mask[row * batch.tokens], items[row]->ids.size(), 1);
            }
            batch.input_ids = ids.data(), batch.attention_mask = mask.data();
        }
        if (images) batch.pixel_values = pixels.data(), batch.height = height, batch.width = width;
        std::vector<float> rows(batch.size * dim());
        backend->embed(batch, rows.data());
        if (!std::all_of(rows.begin(), rows.end(), [](float each) { return std::isfinite(each); }))
            throw BackendError(
                "the engine gave values that are not finite: check the bundle with `uniecs verify`");
        for (std::size_t row = 0; row < items.size(); ++row)
            std::copy_n(&rows[row * dim()], dim(), &out[items[row]->position * dim()]);
    }
};

Encoder Encoder::load(const std::string& bundle, const EncoderOptions& options) {
    return Encoder(std::make_shared<const Impl>(bundle, options));
}

Encoder::Encoder(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder& Encoder::operator=(Encoder&&) noexcept = default;
Encoder::~Encoder() = default;

std::size_t Encoder::embed_dim() const { return impl_->dim(); }

const std::string& Encoder::model_id() const { return impl_->bundle.model_id; }

const std::string& Encoder::bundle() const { return impl_->given; }

const std::string& Encoder::backend() const { return impl_->options.backend; }

const std::string& Encoder::device() const { return impl_->device; }

const std::string& Encoder::precision() const { return impl_->options.precision; }

const std::string& Encoder::folder() const { return impl_->bundle.folder; }

namespace {

// The same kind of error, with the item's position in its message.
[[noreturn]] void rethrow_of_item(const std::exception_ptr& error, std::size_t position) {
    const std::string item = "item " + std::to_string(position) + ": ";
    try {
        std::rethrow_exception(error);
    } catch (const ImageError& found) {
        throw ImageError(item + found.what());
    } catch (const TextError& found) {
        throw TextError(item + found.what());
    } catch (const InputError& found) {
        throw InputError(item + found.what());
    } catch (const std::exception& found) {
        throw Error(item + found.what());
    }
}

}  // namespace

std::vector<float> Encoder::encode(Span<const Item> items, std::size_t batch_size) const {
    std::vector<std::exception_ptr> errors;
    std::vector<float> embeddings = impl_->encode(items, errors, batch_size);
    for (std::size_t i = 0; i < errors.size(); ++i)
        if (errors[i]) rethrow_of_item(errors[i], i);
    return embeddings;
}

std::vector<float> Encoder::encode(Span<const Item> items, std::vector<std::exception_ptr>& errors,
                                   std::size_t batch_size) const {
    return impl_->encode(items, errors, batch_size);
}

}  // namespace uniecs
