#include <algorithm>
#include <limits>
#include <memory>

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

void keep_report(AddReport report, uniecs_report** out) {
    if (!out) return;
    auto made = std::make_unique<uniecs_report>();
    made->report = std::move(report);
    for (Rejected& each : made->report.rejected) {
        const uniecs_status status = status_of(each.error, each.message);
        made->rejections.push_back({each.row, each.id.c_str(), status, each.message.c_str()});
    }
    *out = made.release();
}

namespace {

// Those that cannot be used are in the report, and have NaN.
AddReport encode_good(const Encoder& encoder, const uniecs_item* items, size_t n, size_t batch_size,
                      float* out) {
    const std::size_t dim = encoder.embed_dim();
    Made<Item> made = made_of(items, n, item_of);
    std::vector<std::exception_ptr> errors;
    const std::vector<float> embeddings = encoder.encode(made.good, errors, batch_size);
    std::fill_n(out, n * dim, std::numeric_limits<float>::quiet_NaN());
    for (size_t i = 0; i < made.good.size(); ++i) {
        std::copy_n(&embeddings[i * dim], dim, out + made.places[i] * dim);
        made.errors[made.places[i]] = errors[i];
    }
    AddReport report;
    for (size_t i = 0; i < n; ++i)
        if (made.errors[i])
            report.rejected.push_back({i, "", made.errors[i], ""});
        else
            ++report.added;
    return report;
}

}  // namespace

}  // namespace uniecs::c

using namespace uniecs::c;

const char* uniecs_error_message(void) { return last_error().c_str(); }

uniecs_status uniecs_encoder_load(const char* bundle, const char* backend, const char* precision,
                                  unsigned threads, uniecs_encoder** encoder) {
    return guarded([&] {
        clear(encoder, "encoder");
        require(bundle, "bundle");
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

const char* uniecs_encoder_bundle(const uniecs_encoder* encoder) {
    return encoder ? encoder->encoder.bundle().c_str() : "";
}

const char* uniecs_encoder_backend(const uniecs_encoder* encoder) {
    return encoder ? encoder->encoder.backend().c_str() : "";
}

const char* uniecs_encoder_device(const uniecs_encoder* encoder) {
    return encoder ? encoder->encoder.device().c_str() : "";
}

const char* uniecs_encoder_precision(const uniecs_encoder* encoder) {
    return encoder ? encoder->encoder.precision().c_str() : "";
}

uniecs_status uniecs_encoder_encode(const uniecs_encoder* encoder, const uniecs_item* items, size_t n,
                                    size_t batch_size, float* out, uniecs_report** report) {
    return guarded([&] {
        if (report) *report = nullptr;
        require(encoder, "encoder");
        if (n) require(items, "items"), require(out, "out");
        if (!batch_size) batch_size = 32;
        if (report) return keep_report(encode_good(encoder->encoder, items, n, batch_size, out), report);
        std::vector<uniecs::Item> all;
        for (size_t i = 0; i < n; ++i) all.push_back(item_of(items[i]));
        const std::vector<float> embeddings = encoder->encoder.encode(all, batch_size);
        std::copy(embeddings.begin(), embeddings.end(), out);
    });
}

size_t uniecs_report_added(const uniecs_report* report) { return report ? report->report.added : 0; }

size_t uniecs_report_rejected(const uniecs_report* report) { return report ? report->rejections.size() : 0; }

const uniecs_rejection* uniecs_report_at(const uniecs_report* report, size_t place) {
    return report && place < report->rejections.size() ? &report->rejections[place] : nullptr;
}

void uniecs_report_free(uniecs_report* report) { delete report; }
