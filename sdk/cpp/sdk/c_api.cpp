#include <algorithm>

#include "../src/utf8.hpp"
#include "c_status.hpp"

namespace uniecs::c {

std::string& last_error() {
    thread_local std::string message;
    return message;
}

namespace {

// A path in a message may be no UTF-8: such bytes are question marks.
std::string in_utf8(std::string text) {
    for (std::size_t at = 0; (at += utf8::valid_prefix(std::string_view(text).substr(at))) < text.size();)
        text[at] = '?';
    return text;
}

}  // namespace

uniecs_status status_of(const std::exception_ptr& error, std::string& message) noexcept {
    const auto noted = [&](uniecs_status status, const char* what) {
        try {
            message = in_utf8(what);
        } catch (...) {
            message.clear();
        }
        return status;
    };
    try {
        std::rethrow_exception(error);
    } catch (const ImageError& found) {
        return noted(UNIECS_IMAGE, found.what());
    } catch (const TextError& found) {
        return noted(UNIECS_TEXT, found.what());
    } catch (const FilterError& found) {
        return noted(UNIECS_FILTER, found.what());
    } catch (const InputError& found) {
        return noted(UNIECS_INPUT, found.what());
    } catch (const BundleError& found) {
        return noted(UNIECS_BUNDLE, found.what());
    } catch (const IndexFileError& found) {
        return noted(UNIECS_INDEX_FILE, found.what());
    } catch (const ModelMismatchError& found) {
        return noted(UNIECS_MODEL_MISMATCH, found.what());
    } catch (const BackendError& found) {
        return noted(UNIECS_BACKEND, found.what());
    } catch (const std::exception& found) {
        return noted(UNIECS_INTERNAL, found.what());
    } catch (...) {
        return noted(UNIECS_INTERNAL, "unknown error");
    }
}

void require(const void* pointer, const char* name) {
    if (!pointer) throw InputError(std::string(name) + " is NULL");
}

std::optional<Image> image_of(const char* path, const void* data, std::size_t bytes) {
    if (path && data) throw InputError("there are both image_path and image_data");
    if (path) return Image::file(path);
    if (data) return Image::bytes({static_cast<const char*>(data), bytes});
    return std::nullopt;
}

Item item_of(const uniecs_item& given) {
    Item item;
    if (given.text) item.text = given.text;
    item.image = image_of(given.image_path, given.image_data, given.image_bytes);
    return item;
}

}  // namespace uniecs::c

using namespace uniecs::c;

const char* uniecs_error_message(void) { return last_error().c_str(); }

uniecs_status uniecs_encoder_load(const char* bundle, const char* backend, const char* precision,
                                  unsigned threads, uniecs_encoder** encoder) {
    return guarded([&] {
        require(bundle, "bundle");
        require(encoder, "encoder");
        *encoder = nullptr;
        uniecs::EncoderOptions options;
        if (backend) options.backend = backend;
        if (precision) options.precision = precision;
        options.threads = threads;
        *encoder = new uniecs_encoder{uniecs::Encoder::load(bundle, options)};
    });
}

void uniecs_encoder_free(uniecs_encoder* encoder) { delete encoder; }

size_t uniecs_encoder_embed_dim(const uniecs_encoder* encoder) {
    return encoder ? encoder->encoder.embed_dim() : 0;
}

const char* uniecs_encoder_model_id(const uniecs_encoder* encoder) {
    return encoder ? encoder->encoder.model_id().c_str() : "";
}

uniecs_status uniecs_encoder_encode(const uniecs_encoder* encoder, const uniecs_item* items, size_t n,
                                    float* out) {
    return guarded([&] {
        require(encoder, "encoder");
        if (n) require(items, "items"), require(out, "out");
        std::vector<uniecs::Item> all;
        for (size_t i = 0; i < n; ++i) all.push_back(item_of(items[i]));
        const std::vector<float> embeddings = encoder->encoder.encode(all);
        std::copy(embeddings.begin(), embeddings.end(), out);
    });
}
