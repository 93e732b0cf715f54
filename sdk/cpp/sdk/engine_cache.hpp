// TensorRT engines on disk, as `uniecs build` leaves them (sdk/uniecs/backends/engine_cache.py).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace uniecs {

// What an engine is tied to besides the model; versions as Python writes them.
struct Machine {
    std::string gpu, compute_capability, driver, tensorrt;
};

// The sizes that engines are built for: least, best, most.
struct Profile {
    using Sizes = std::array<std::int64_t, 3>;

    Profile(std::size_t max_tokens, std::size_t image_tokens);

    Sizes batch, text_length, image_length;
};

// An engine serves exactly this.
struct EngineKey {
    std::string model_id, graph;
    Machine machine;
    Profile profile;

    std::string json() const;  // keys sorted, no spaces: what the file's name is a digest of
    std::filesystem::path path(const std::filesystem::path& cache) const;
};

// $UNIECS_CACHE, or uniecs in $XDG_CACHE_HOME or ~/.cache. Throws BackendError if that is no absolute path.
std::filesystem::path engine_folder();

// The serialised engine of a key. Throws EngineMismatchError if its file is damaged or of another key, or if
// there are engines of the model and graph for other keys only; BackendError if there is none.
std::string load_engine(const std::filesystem::path& cache, const EngineKey& key);

}  // namespace uniecs
