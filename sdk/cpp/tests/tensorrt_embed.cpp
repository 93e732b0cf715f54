// The TensorRT backend alone, for tests/test_cpp_tensorrt.py: BUNDLE THREADS; batches on stdin, embeddings on
// stdout. A batch is int64 size, int64 tokens (0: no texts), int64 images (0 or 1), then int64 input_ids and
// attention_mask (size, tokens), float32 pixel_values (size, 3, height, width).
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "../sdk/bundle.hpp"
#include "uniecs/errors.hpp"

namespace {

struct Request {
    uniecs::Batch batch;
    std::vector<std::int64_t> ids, mask;
    std::vector<float> pixels, out;
    std::string error;
};

template <typename T>
void read(std::vector<T>& data, std::size_t count) {
    data.resize(count);
    if (std::fread(data.data(), sizeof(T), count, stdin) != count) std::exit(2);
}

bool next(Request& request, const uniecs::Bundle& bundle) {
    std::int64_t header[3];
    if (std::fread(header, sizeof header, 1, stdin) != 1) return false;
    uniecs::Batch& batch = request.batch;
    batch.size = static_cast<std::size_t>(header[0]), batch.tokens = static_cast<std::size_t>(header[1]);
    if (batch.tokens) {
        read(request.ids, batch.size * batch.tokens), read(request.mask, batch.size * batch.tokens);
        batch.input_ids = request.ids.data(), batch.attention_mask = request.mask.data();
    }
    if (header[2]) {
        batch.height = static_cast<std::size_t>(bundle.preprocessing.height_px);
        batch.width = static_cast<std::size_t>(bundle.preprocessing.width_px);
        read(request.pixels, batch.size * 3 * batch.height * batch.width);
        batch.pixel_values = request.pixels.data();
    }
    request.out.resize(batch.size * bundle.embed_dim);
    return true;
}

int run(const std::string& folder, std::size_t threads) {
    const uniecs::Bundle bundle = uniecs::open_bundle(folder);
    const std::unique_ptr<uniecs::Backend> backend = uniecs::tensorrt_backend(bundle);
    std::vector<Request> requests;
    for (Request request; next(request, bundle); request = {}) requests.push_back(std::move(request));
    std::vector<std::thread> running;
    for (std::size_t thread = 0; thread < threads; ++thread)
        running.emplace_back([&, thread] {
            for (std::size_t i = thread; i < requests.size(); i += threads) try {
                    backend->embed(requests[i].batch, requests[i].out.data());
                } catch (const uniecs::Error& error) {
                    requests[i].error = error.what();
                }
        });
    for (std::thread& each : running) each.join();
    for (const Request& request : requests) {
        if (!request.error.empty()) std::fprintf(stderr, "%s\n", request.error.c_str());
        std::fwrite(request.out.data(), sizeof(float), request.out.size(), stdout);
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    try {
        return run(argv[1], static_cast<std::size_t>(std::atoi(argv[2])));
    } catch (const uniecs::EngineMismatchError& error) {
        std::fprintf(stderr, "EngineMismatchError: %s\n", error.what());
    } catch (const uniecs::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
    }
    return 1;
}
