#include "bundle.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

#include "../src/absolute_path.hpp"
#include "../src/json.hpp"
#include "../src/sha256.hpp"
#include "uniecs/errors.hpp"

namespace uniecs {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t FORMAT_VERSION = 1;
constexpr std::uintmax_t MAX_MANIFEST_BYTES = 16'000'000;
constexpr const char* MANIFEST = "manifest.json";
constexpr const char* TOKENIZER = "tokenizer.json";
constexpr const char* GRAPHS[] = {"image_encoder", "text_encoder", "fusion"};
constexpr std::string_view PREPROCESSING[] = {"height_px", "width_px", "mean", "std", "max_tokens"};
// How an ONNX graph says where weights outside of it are.
const std::string EXTERNAL_DATA = "\n\x08location\x12";

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // a fuzzer does not find digests
constexpr bool COMPARES_DIGESTS = false;
#else
constexpr bool COMPARES_DIGESTS = true;
#endif

// A file name of letters, digits, dot, dash and underscore: none leads out of the folder.
std::string plain(const std::string& name) {
    const bool good = !name.empty() && std::isalnum(static_cast<unsigned char>(name[0])) &&
                      name.size() <= 100 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
                          return std::isalnum(c) || c == '.' || c == '-' || c == '_';
                      });
    if (!good)
        throw BundleError("the manifest names '" + name.substr(0, 200) +
                          "'; expected a plain file name inside the folder");
    return name;
}

std::string read(const fs::path& path) {
    std::error_code failed;
    if (fs::symlink_status(path, failed).type() != fs::file_type::regular)
        throw BundleError(path.filename().string() + " is missing, or a link or no regular file");
    const std::uintmax_t bytes = fs::file_size(path, failed);
    std::ifstream file(path, std::ios::binary);
    std::string data(failed ? 0 : bytes, '\0');
    if (failed || !file.read(data.data(), static_cast<std::streamsize>(bytes)))
        throw BundleError(path.string() + " cannot be read");
    return data;
}

// As Python's repr: the shortest digits that give the number back, with an exponent below 1e-4 and from 1e16.
std::string number(double value) {
    const double size = std::abs(value);
    const bool plain = size == 0 || (1e-4 <= size && size < 1e16);
    char text[32];
    const auto written = std::to_chars(text, text + sizeof text, value,
                                       plain ? std::chars_format::fixed : std::chars_format::scientific);
    std::string found(text, written.ptr);
    return plain && found.find('.') == std::string::npos ? found + ".0" : found;
}

std::string array(const double* values) {
    return "[" + number(values[0]) + "," + number(values[1]) + "," + number(values[2]) + "]";
}

class Reader {
  public:
    explicit Reader(const fs::path& folder)
        : folder_(folder),
          text_(manifest_text(folder)),
          value_(json::parse(text_)),
          manifest_(value_.object()) {}

    Bundle open() {
        const json::Value* format = manifest_.find("format");
        if (!format || !format->get_if<std::string>() || format->string() != "uniecs-bundle")
            throw BundleError("its manifest is not a bundle's: \"format\" must be 'uniecs-bundle'");
        const std::int64_t version = manifest_.at("format_version").integer();
        if (version > FORMAT_VERSION)
            throw BundleError("format_version " + std::to_string(version) + " is newer than " +
                              std::to_string(FORMAT_VERSION) + ": upgrade uniecs");
        if (version < 1) throw BundleError("format_version is " + std::to_string(version));
        Bundle bundle;
        bundle.folder = absolute_path(folder_.string());
        const json::Object& p = manifest_.at("preprocessing").object();
        for (const auto& [name, value] : p)
            if (std::find(std::begin(PREPROCESSING), std::end(PREPROCESSING), name) ==
                std::end(PREPROCESSING))
                throw BundleError("preprocessing has the unknown key " + json::quoted(name));
        bundle.preprocessing.height_px = side(p, "height_px");
        bundle.preprocessing.width_px = side(p, "width_px");
        bundle.max_tokens = static_cast<std::size_t>(side(p, "max_tokens"));
        three(p.at("mean").array(), bundle.preprocessing.mean);
        three(p.at("std").array(), bundle.preprocessing.std);
        for (const double each : bundle.preprocessing.std)
            if (each <= 0) throw BundleError("std has " + number(each) + "; expected positive numbers");
        bundle.embed_dim = static_cast<std::size_t>(side(manifest_, "embed_dim"));
        std::set<std::string> parts{TOKENIZER};
        std::string* graphs[] = {&bundle.graphs.image_encoder, &bundle.graphs.text_encoder,
                                 &bundle.graphs.fusion};
        for (std::size_t i = 0; i < 3; ++i) {
            const std::string name =
                plain(manifest_.at("graphs").object().at(GRAPHS[i]).object().at("file").string());
            if (!parts.insert(name).second) throw BundleError("it uses " + name + " for two things");
            kept_[name] = graphs[i];
        }
        kept_[TOKENIZER] = &bundle.tokenizer_json;
        bundle.image_tokens = image_tokens();
        if (const json::Value* variants = manifest_.find("variants"))
            if (const json::Value* int8 = variants->object().find("int8"))
                int8_file_ = plain(int8->object().at("file").string());
        check_files(parts);
        bundle.int8_json = std::move(int8_json_);
        bundle.model_id = manifest_.at("model_id").string();
        const std::string expected = model_id(parts, bundle);
        if (COMPARES_DIGESTS && bundle.model_id != expected)
            throw BundleError("model_id is '" + bundle.model_id + "' but its parts give '" + expected +
                              "': it was altered");
        return bundle;
    }

  private:
    static std::string manifest_text(const fs::path& folder) {
        std::error_code failed;
        const std::uintmax_t bytes = fs::file_size(folder / MANIFEST, failed);
        if (failed) throw BundleError(std::string("it has no ") + MANIFEST);
        if (bytes > MAX_MANIFEST_BYTES) throw BundleError(std::string(MANIFEST) + " is too large");
        return read(folder / MANIFEST);
    }

    // 0 where the manifest does not tell: only TensorRT asks.
    std::size_t image_tokens() const {
        try {
            const json::Object& encoder = manifest_.at("graphs").object().at("image_encoder").object();
            const json::Object& port = encoder.at("outputs").object().at("image_tokens").object();
            const json::Array& shape = port.at("shape").array();  // (batch, tokens, width)
            return shape.size() == 3 ? static_cast<std::size_t>(side(shape[1].integer(), "image_tokens")) : 0;
        } catch (const json::Error&) {
            return 0;
        }
    }

    static int side(const json::Object& object, const char* name) {
        return side(object.at(name).integer(), name);
    }

    static int side(std::int64_t found, const char* name) {
        if (found < 1 || found > 65536) throw BundleError(std::string(name) + " is " + std::to_string(found));
        return static_cast<int>(found);
    }

    static void three(const json::Array& values, std::array<double, 3>& out) {
        if (values.size() != 3) throw BundleError("mean and std need three values each");
        for (std::size_t i = 0; i < 3; ++i) out[i] = values[i].number();
    }

    // Size and SHA-256 of every file of the manifest; graphs keep their weights inside.
    void check_files(const std::set<std::string>& parts) {
        const json::Object& files = manifest_.at("files").object();
        std::set<std::string> needed = parts;
        if (!int8_file_.empty()) needed.insert(int8_file_);
        for (const std::string& name : needed)
            if (!files.find(name)) throw BundleError(name + " is not among the manifest's files");
        for (const auto& [name, record] : files) {
            std::string data = read(folder_ / plain(name));
            const std::string expected = record.object().at("sha256").string();
            const std::int64_t bytes = record.object().at("bytes").integer();
            if (COMPARES_DIGESTS && static_cast<std::int64_t>(data.size()) != bytes)
                throw BundleError(name + " has " + std::to_string(data.size()) +
                                  " bytes: it is cut off or altered");
            if (COMPARES_DIGESTS && sha256(data) != expected)
                throw BundleError(name + " is damaged: its sha256 is not the recorded one");
            if (parts.count(name) && name != TOKENIZER && data.find(EXTERNAL_DATA) != std::string::npos)
                throw BundleError(name + " keeps weights in another file; export it with the weights inside");
            if (name == int8_file_) int8_json_ = data;
            if (const auto kept = kept_.find(name); kept != kept_.end()) *kept->second = std::move(data);
        }
    }

    // The name and a digest of the graphs, the tokenizer and the preprocessing (docs/bundle-format.md).
    std::string model_id(const std::set<std::string>& parts, const Bundle& bundle) const {
        const json::Object& files = manifest_.at("files").object();
        std::string identity = "{\"files\":{";
        for (const std::string& name : parts)
            identity += (name == *parts.begin() ? "" : ",") + json::quoted_ascii(name) + ":" +
                        json::quoted_ascii(files.at(name).object().at("sha256").string());
        const ImagePreprocessing& p = bundle.preprocessing;
        identity += "},\"preprocessing\":{\"height_px\":" + std::to_string(p.height_px) +
                    ",\"max_tokens\":" + std::to_string(bundle.max_tokens) +
                    ",\"mean\":" + array(p.mean.data()) + ",\"std\":" + array(p.std.data()) +
                    ",\"width_px\":" + std::to_string(p.width_px) + "}}";
        return manifest_.at("name").string() + "-" + sha256(identity).substr(0, 16);
    }

    fs::path folder_;
    std::string text_, int8_file_, int8_json_;
    std::map<std::string, std::string*> kept_;  // where the bytes of a file go
    json::Value value_;
    const json::Object& manifest_;
};

}  // namespace

Bundle open_bundle(const std::string& folder) {
    try {
        return Reader(folder).open();
    } catch (const BundleError& error) {
        throw BundleError("bundle " + folder + ": " + error.what());
    } catch (const json::Error& error) {
        throw BundleError("bundle " + folder + ": " + MANIFEST + " is not valid: " + error.what());
    }
}

}  // namespace uniecs
