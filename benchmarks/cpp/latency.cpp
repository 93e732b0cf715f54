// The C++ side of latency.py: a search for each line of the input, timed.
//
//   latency BUNDLE INDEX THREADS
//
// It says "ready", then answers each line, TEXT<TAB>PATH with either of the two empty, with a line: for the
// whole search, for the engine's own runs and for images to pixel_values the nanoseconds by the clock and
// those of this thread on a CPU, and ID=SCORE for each hit. An image is read before the clock starts: the
// search is given its bytes.
//
// What lies within is timed by functions of the same names as the library's, which the loader prefers to
// those, and which call those: libuniecs.so is the one that is shipped.
#include <dlfcn.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <openvino/runtime/infer_request.hpp>
#include <string>
#include <vector>

#include "../../sdk/cpp/images/decode.hpp"
#include "../../sdk/cpp/src/bert_encoder.hpp"
#include "../../sdk/cpp/src/item_fusion.hpp"
#include "uniecs/uniecs.hpp"

namespace {

struct Spent {
    long long wall = 0, cpu = 0;  // nanoseconds
};

long long read_clock(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

// Adds the time of its life.
class Timer {
  public:
    explicit Timer(Spent& sum) : sum_(sum) {}
    ~Timer() {
        sum_.cpu += read_clock(CLOCK_THREAD_CPUTIME_ID) - cpu_;
        sum_.wall += read_clock(CLOCK_MONOTONIC) - wall_;
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

  private:
    Spent& sum_;
    const long long wall_ = read_clock(CLOCK_MONOTONIC), cpu_ = read_clock(CLOCK_THREAD_CPUTIME_ID);
};

Spent in_engine, in_pixels, in_graph;  // of the one thread that searches

template <typename Function>
Function next(const char* symbol) {
    void* const found = dlsym(RTLD_NEXT, symbol);
    if (!found) {
        std::fprintf(stderr, "%s is not where it is looked for: %s\n", symbol, dlerror());
        std::exit(1);
    }
    return reinterpret_cast<Function>(found);
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void answer(const uniecs::SearchEngine& engine, const uniecs::Item& query) {
    in_engine = in_pixels = in_graph = {};
    Spent whole;
    std::vector<uniecs::Hit> hits;
    {
        const Timer timer(whole);
        hits = engine.search(query);
    }
    for (const Spent& each : {whole, in_engine, in_pixels, in_graph})
        std::printf("%lld %lld ", each.wall, each.cpu);
    for (const uniecs::Hit& hit : hits)
        std::printf("%s=%.6f ", hit.id.c_str(), static_cast<double>(hit.score));
    std::printf("\n");
    std::fflush(stdout);
}

void serve(const std::string& bundle, const std::string& index, unsigned threads) {
    const auto encoder = uniecs::Encoder::load(bundle, {"fp32", threads});
    const auto engine = uniecs::SearchEngine::open(index, encoder);
    std::puts("ready");
    std::fflush(stdout);
    std::map<std::string, std::string> photos;
    for (std::string line; std::getline(std::cin, line);) {
        const std::size_t tab = line.find('\t');
        if (tab == std::string::npos) throw uniecs::InputError("expected TEXT<TAB>PATH");
        uniecs::Item query;
        if (tab > 0) query.text = line.substr(0, tab);
        if (const std::string path = line.substr(tab + 1); !path.empty()) {
            std::string& data = photos[path];
            if (data.empty()) data = read_file(path);
            query.image = uniecs::Image::bytes(data);
        }
        answer(engine, query);
    }
}

}  // namespace

void ov::InferRequest::infer() {
    static const auto real = next<void (*)(ov::InferRequest*)>("_ZN2ov12InferRequest5inferEv");
    const Timer timer(in_engine);
    real(this);
}

void ov::InferRequest::set_tensor(const std::string& name, const Tensor& tensor) {
    using Real = void (*)(InferRequest*, const std::string&, const Tensor&);
    static const auto real = next<Real>(
        "_ZN2ov12InferRequest10set_tensorERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEERKNS_"
        "6TensorE");
    const Timer timer(in_engine);
    real(this, name, tensor);
}

ov::Tensor ov::InferRequest::get_output_tensor() {
    static const auto real =
        next<ov::Tensor (*)(ov::InferRequest*)>("_ZN2ov12InferRequest17get_output_tensorEv");
    const Timer timer(in_engine);
    return real(this);
}

// These two stand in for graphs of the engine's.
bool uniecs::BertEncoder::encode(const std::int64_t* ids, const std::int64_t* mask, std::size_t texts,
                                 std::size_t length, std::vector<float>& tokens) const {
    using Real = bool (*)(const BertEncoder*, const std::int64_t*, const std::int64_t*, std::size_t,
                          std::size_t, std::vector<float>&);
    static const auto real = next<Real>("_ZNK6uniecs11BertEncoder6encodeEPKlS2_mmRSt6vectorIfSaIfEE");
    const Timer timer(in_engine);
    return real(this, ids, mask, texts, length, tokens);
}

void uniecs::ItemFusion::embed(const std::vector<Item>& items, float* embeddings) const {
    using Real = void (*)(const ItemFusion*, const std::vector<Item>&, float*);
    static const auto real = next<Real>("_ZNK6uniecs10ItemFusion5embedERKSt6vectorINS0_4ItemESaIS2_EEPf");
    const Timer timer(in_engine);
    real(this, items, embeddings);
}

std::vector<float> uniecs::image_pixel_values(Span<const std::uint8_t> file, const ImagePreprocessing& p) {
    using Real = std::vector<float> (*)(Span<const std::uint8_t>, const ImagePreprocessing&);
    static const auto real =
        next<Real>("_ZN6uniecs18image_pixel_valuesENS_4SpanIKhEERKNS_18ImagePreprocessingE");
    const Timer timer(in_pixels);
    return real(file, p);
}

std::vector<uniecs::Hits> uniecs::Graph::search_batch(Span<const float> queries, std::size_t k,
                                                      const SearchOptions& options, unsigned threads) const {
    using Real =
        std::vector<Hits> (*)(const Graph*, Span<const float>, std::size_t, const SearchOptions&, unsigned);
    static const auto real =
        next<Real>("_ZNK6uniecs5Graph12search_batchENS_4SpanIKfEEmRKNS_13SearchOptionsEj");
    const Timer timer(in_graph);
    return real(this, queries, k, options, threads);
}

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: latency BUNDLE INDEX THREADS\n");
        return 2;
    }
    try {
        serve(argv[1], argv[2], static_cast<unsigned>(std::atoi(argv[3])));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
