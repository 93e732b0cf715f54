// libFuzzer on the manifest of a bundle, its digests aside: any manifest.json beside three graphs and a
// tokenizer gives a BundleError, or a bundle of files in that folder that can be used.
//
//   cmake -S sdk/cpp -B build-fuzz -DUNIECS_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++
//   cmake --build build-fuzz --target manifest_fuzzer
//   build-fuzz/manifest_fuzzer -max_len=4096 NEW_CORPUS sdk/cpp/fuzz/corpus/manifests
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "../sdk/bundle.hpp"
#include "uniecs/errors.hpp"

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

void write(const std::string& path, const void* data, std::size_t size) {
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    require(file && std::fwrite(data, 1, size, file) == size && std::fclose(file) == 0);
}

// A bundle's files but the manifest, and a file beside the folder that no manifest may reach.
std::string made_folder() {
    const std::string parent = "/dev/shm/manifest_fuzzer." + std::to_string(getpid()), folder = parent + "/b";
    std::filesystem::create_directories(folder);
    for (const char* name : {"image_encoder.onnx", "text_encoder.onnx", "fusion.onnx", "tokenizer.json"})
        write(folder + "/" + name, name, 8);
    write(parent + "/outside", "outside", 7);
    return folder;
}

void check(const uniecs::Bundle& bundle) {
    const auto& [height, width, mean, std] = bundle.preprocessing;
    require(height > 0 && width > 0 && height <= 65536 && width <= 65536 && bundle.max_tokens > 0 &&
            bundle.embed_dim > 0);
    for (std::size_t i = 0; i < 3; ++i)
        require(std::isfinite(mean[i]) && std::isfinite(std[i]) && std[i] > 0);
    for (const std::string& graph :
         {bundle.graphs.image_encoder, bundle.graphs.text_encoder, bundle.graphs.fusion})
        require(graph != "outside");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string folder = made_folder();
    write(folder + "/manifest.json", data, size);
    try {
        check(uniecs::open_bundle(folder));
    } catch (const uniecs::BundleError&) {
    }
    return 0;
}
