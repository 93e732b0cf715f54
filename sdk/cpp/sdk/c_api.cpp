#include <algorithm>

#include "uniecs/uniecs.h"
#include "uniecs/uniecs.hpp"

struct uniecs_encoder {
    uniecs::Encoder encoder;
};

namespace {

thread_local std::string last_error;

uniecs_status status_of(const std::exception_ptr& error) {
    const auto noted = [](uniecs_status status, const std::exception& found) {
        last_error = found.what();
        return status;
    };
    try {
        std::rethrow_exception(error);
    } catch (const uniecs::ImageError& found) {
        return noted(UNIECS_IMAGE, found);
    } catch (const uniecs::TextError& found) {
        return noted(UNIECS_TEXT, found);
    } catch (const uniecs::FilterError& found) {
        return noted(UNIECS_FILTER, found);
    } catch (const uniecs::InputError& found) {
        return noted(UNIECS_INPUT, found);
    } catch (const uniecs::BundleError& found) {
        return noted(UNIECS_BUNDLE, found);
    } catch (const uniecs::IndexFileError& found) {
        return noted(UNIECS_INDEX_FILE, found);
    } catch (const uniecs::ModelMismatchError& found) {
        return noted(UNIECS_MODEL_MISMATCH, found);
    } catch (const uniecs::BackendError& found) {
        return noted(UNIECS_BACKEND, found);
    } catch (const std::exception& found) {
        return noted(UNIECS_INTERNAL, found);
    } catch (...) {
        last_error = "unknown error";
        return UNIECS_INTERNAL;
    }
}

// No exception leaves the C interface.
template <typename Work>
uniecs_status guarded(Work work) {
    try {
        work();
        return UNIECS_OK;
    } catch (...) {
        return status_of(std::current_exception());
    }
}

void require(const void* pointer, const char* name) {
    if (!pointer) throw uniecs::InputError(std::string(name) + " is NULL");
}

uniecs::Item item_of(const uniecs_item& given) {
    uniecs::Item item;
    if (given.text) item.text = given.text;
    if (given.image_path && given.image_data)
        throw uniecs::InputError("an item has both image_path and image_data");
    if (given.image_path) item.image = uniecs::Image::file(given.image_path);
    if (given.image_data)
        item.image = uniecs::Image::bytes({static_cast<const char*>(given.image_data), given.image_bytes});
    return item;
}

}  // namespace

const char* uniecs_error_message(void) { return last_error.c_str(); }

uniecs_status uniecs_encoder_load(const char* bundle, const char* precision, unsigned threads,
                                  uniecs_encoder** encoder) {
    return guarded([&] {
        require(bundle, "bundle");
        require(encoder, "encoder");
        *encoder = nullptr;
        uniecs::EncoderOptions options;
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
