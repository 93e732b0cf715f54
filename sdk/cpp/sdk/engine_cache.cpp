#include "engine_cache.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <vector>

#include "../src/json.hpp"
#include "../src/sha256.hpp"
#include "uniecs/errors.hpp"

namespace uniecs {
namespace {

namespace fs = std::filesystem;

constexpr char MAGIC[] = "uniecs engine 1\n";
constexpr std::size_t MAGIC_BYTES = sizeof MAGIC - 1, LENGTH_BYTES = 8, MAX_HEADER_BYTES = 1'000'000;
constexpr int RECIPE = 1;           // as in engine_cache.py
constexpr std::size_t DIGITS = 16;  // of the digest, in a file's name
constexpr const char* REMEDY = ": run `uniecs build BUNDLE` on this machine";

std::string array(const Profile::Sizes& sizes) {
    return "[" + std::to_string(sizes[0]) + "," + std::to_string(sizes[1]) + "," + std::to_string(sizes[2]) +
           "]";
}

// At most `most` bytes of a file.
std::string read(const fs::path& path, std::size_t most) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const auto bytes = static_cast<std::streamoff>(file.tellg());
    if (!file || bytes < 0) throw BackendError(path.string() + " cannot be read");
    std::string data(std::min(static_cast<std::size_t>(bytes), most), '\0');
    if (!file.seekg(0).read(data.data(), static_cast<std::streamsize>(data.size())))
        throw BackendError(path.string() + " cannot be read");
    return data;
}

struct Header {
    json::Value key;
    std::string sha256;
    std::size_t end = 0;  // where the engine begins
};

Header header_of(const fs::path& path, std::string_view data) {
    const std::size_t start = MAGIC_BYTES + LENGTH_BYTES;
    try {
        if (data.substr(0, MAGIC_BYTES) != MAGIC || data.size() < start)
            throw json::Error("it does not begin like one");
        std::uint64_t bytes = 0;
        for (std::size_t i = 0; i < LENGTH_BYTES; ++i)
            bytes |= std::uint64_t{static_cast<unsigned char>(data[MAGIC_BYTES + i])} << 8 * i;
        if (bytes > std::min(data.size() - start, MAX_HEADER_BYTES))
            throw json::Error("it does not begin like one");
        const json::Value read = json::parse(data.substr(start, bytes));
        read.object().at("key").object();
        return {read.object().at("key"), read.object().at("sha256").string(), start + bytes};
    } catch (const json::Error& error) {
        throw EngineMismatchError(path.string() + " is no engine of uniecs (" + error.what() + ")" + REMEDY);
    }
}

// Every part in which two keys differ, as "driver: 580.1, here 590.2".
std::vector<std::string> differences(const json::Object& wanted, const json::Object& found) {
    const auto text = [](const json::Value* value) -> std::string {
        if (!value) return "none";
        return value->get_if<std::string>() ? value->string() : json::written(*value);
    };
    std::set<std::string> names;
    for (const json::Object* each : {&wanted, &found})
        for (const auto& [name, value] : *each) names.insert(name);
    std::vector<std::string> differing;
    for (const std::string& name : names) {
        const std::string here = text(wanted.find(name)), there = text(found.find(name));
        if (here != there) differing.push_back(name + ": " + there + ", here " + here);
    }
    return differing;
}

std::string joined(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) all += (all.empty() ? "" : "; ") + part;
    return all;
}

// What differs in the engine of the same graph that differs least; none: there is no engine of it.
std::optional<std::vector<std::string>> nearest(const fs::path& folder, const std::string& graph,
                                                const json::Object& wanted) {
    std::optional<std::vector<std::string>> least;
    std::error_code failed;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, failed)) {
        const std::string name = entry.path().filename().string();
        if (name.rfind(graph + "-", 0) != 0 || entry.path().extension() != ".engine") continue;
        try {
            const std::string start = read(entry.path(), MAGIC_BYTES + LENGTH_BYTES + MAX_HEADER_BYTES);
            const Header header = header_of(entry.path(), start);
            const std::vector<std::string> differing = differences(wanted, header.key.object());
            if (!least || differing.size() < least->size()) least = differing;
        } catch (const EngineMismatchError&) {
            continue;  // a foreign file: the message tells of the engines there are
        }
    }
    return least;
}

}  // namespace

Profile::Profile(std::size_t max_tokens, std::size_t image_tokens)
    : batch{1, 8, 32},
      text_length{1, std::min<std::int64_t>(16, static_cast<std::int64_t>(max_tokens)),
                  static_cast<std::int64_t>(max_tokens)},
      image_length{1, static_cast<std::int64_t>(image_tokens), static_cast<std::int64_t>(image_tokens)} {}

std::string EngineKey::json() const {
    const auto quoted = json::quoted_ascii;
    return "{\"batch\":" + array(profile.batch) +
           ",\"compute_capability\":" + quoted(machine.compute_capability) +
           ",\"driver\":" + quoted(machine.driver) + ",\"gpu\":" + quoted(machine.gpu) +
           ",\"graph\":" + quoted(graph) + ",\"image_length\":" + array(profile.image_length) +
           ",\"model_id\":" + quoted(model_id) +
           ",\"precision\":\"fp16\",\"recipe\":" + std::to_string(RECIPE) +
           ",\"tensorrt\":" + quoted(machine.tensorrt) + ",\"text_length\":" + array(profile.text_length) +
           "}";
}

fs::path EngineKey::path(const fs::path& cache) const {
    return cache / "tensorrt" / model_id / (graph + "-" + sha256(json()).substr(0, DIGITS) + ".engine");
}

fs::path engine_folder() {
    const char* chosen = std::getenv("UNIECS_CACHE");
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    const fs::path folder = chosen            ? fs::path(chosen)
                            : cache && *cache ? fs::path(cache) / "uniecs"
                                              : fs::path(home ? home : "") / ".cache" / "uniecs";
    if (!folder.is_absolute())
        throw BackendError("there is no cache folder for engines: set UNIECS_CACHE to an absolute path");
    return folder;
}

std::string load_engine(const fs::path& cache, const EngineKey& key) {
    const fs::path path = key.path(cache);
    const json::Value wanted = json::parse(key.json());
    std::error_code failed;
    if (!fs::is_regular_file(path, failed)) {
        const auto others = nearest(path.parent_path(), key.graph, wanted.object());
        if (others)
            throw EngineMismatchError("no engine of " + key.graph + " in " + path.parent_path().string() +
                                      " is for this machine; the nearest differs in " + joined(*others) +
                                      REMEDY);
        throw BackendError("no TensorRT engine of " + key.graph + " of " + key.model_id + " in " +
                           cache.string() + REMEDY);
    }
    std::string data = read(path, std::string::npos);
    const Header header = header_of(path, data);
    const std::vector<std::string> differing = differences(wanted.object(), header.key.object());
    if (!differing.empty())
        throw EngineMismatchError(path.string() + " holds another engine; it differs in " +
                                  joined(differing) + REMEDY);
    data.erase(0, header.end);
    if (sha256(data) != header.sha256)
        throw EngineMismatchError(path.string() + " is damaged, its checksum differs" + REMEDY);
    return data;
}

}  // namespace uniecs
