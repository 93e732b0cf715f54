#include <algorithm>
#include <climits>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <openvino/openvino.hpp>
#include <thread>
#include <vector>

#include "../src/crew.hpp"
#include "../src/row_kernels.hpp"
#include "../src/signal_stack.hpp"
#include "backend.hpp"
#include "bert_encoder_model.hpp"
#include "item_fusion_model.hpp"
#include "openvino_int8.hpp"
#include "token_padding.hpp"
#include "uniecs/errors.hpp"

namespace uniecs {
namespace {

// Infer requests of each graph. OpenVINO runs one at a time; each keeps its last tensors, and making them
// anew for every call costs memory that it does not give back.
constexpr std::size_t MAX_REQUESTS = 4;
// Kernels kept for each graph, about four for each shape of input; OpenVINO's 5000 take gigabytes.
constexpr const char* MAX_PREPARED = "256";

ov::Core made_core() {
    const KeptSignalStack kept;
    ov::Core core;
    core.get_property("CPU", ov::device::capabilities);  // makes the plugin
    return core;
}

// One graph, an ONNX file: compiled on first use, run by as many threads at once as there may be requests;
// more wait.
class CompiledGraph {
  public:
    CompiledGraph(ov::Core& core, std::string data, ov::AnyMap config, bool padded,
                  std::vector<QuantizedInput> int8)
        : core_(core),
          data_(std::move(data)),
          config_(std::move(config)),
          padded_(padded),
          int8_(std::move(int8)) {}

    // As it is in the file, before its first run.
    std::shared_ptr<ov::Model> model() const { return core_.read_model(data_, ov::Tensor()); }

    // Calls use(request) with a request of its own.
    template <typename Use>
    void run(Use use) {
        const Lent lent{*this, take()};
        use(*lent.request);
    }

  private:
    // Gives the request back, whether the call succeeded or threw.
    struct Lent {
        CompiledGraph& graph;
        std::unique_ptr<ov::InferRequest> request;

        ~Lent() {
            {
                const std::lock_guard<std::mutex> lock(graph.mutex_);
                graph.idle_.push_back(std::move(request));
            }
            graph.returned_.notify_one();
        }
    };

    std::unique_ptr<ov::InferRequest> take() {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!compiled_) {
            const std::shared_ptr<ov::Model> read = model();
            if (padded_) pad_tokens(read);
            quantize(read, int8_);
            compiled_ = core_.compile_model(read, "CPU", config_);
            std::string().swap(data_);  // an assignment would keep its memory
            idle_.reserve(MAX_REQUESTS);
        }
        if (idle_.empty() && made_ < MAX_REQUESTS) {
            auto request = std::make_unique<ov::InferRequest>(compiled_.create_infer_request());
            ++made_;
            return request;
        }
        returned_.wait(lock, [&] { return !idle_.empty(); });
        std::unique_ptr<ov::InferRequest> request = std::move(idle_.back());
        idle_.pop_back();
        return request;
    }

    ov::Core& core_;
    std::string data_;
    ov::AnyMap config_;
    bool padded_;
    std::vector<QuantizedInput> int8_;
    std::mutex mutex_;
    std::condition_variable returned_;
    ov::CompiledModel compiled_;
    std::size_t made_ = 0;
    std::vector<std::unique_ptr<ov::InferRequest>> idle_;
};

ov::AnyMap configuration(ov::Core& core, const std::string& precision, unsigned threads) {
    const auto able = core.get_property("CPU", ov::device::capabilities);
    const auto has = [&](const char* what) {
        return std::find(able.begin(), able.end(), what) != able.end();
    };
    if (precision != "fp32" && precision != "bf16" && precision != "int8")
        throw BackendError("precision is '" + precision +
                           "'; the openvino backend runs in fp32, bf16 or int8");
    if (threads > INT_MAX)
        throw BackendError("threads is " + std::to_string(threads) + "; expected 0 to " +
                           std::to_string(INT_MAX));
    if (precision == "bf16" && !has("BF16"))
        throw BackendError("this CPU has no bf16 instructions (AVX512_BF16 or AMX); use precision fp32");
    if (precision == "int8" && !(has("INT8") && has_byte_products()))
        throw BackendError(
            "this CPU has no int8 arithmetic for an engine (VNNI): sums of products would overflow; use "
            "precision fp32");
    // Under int8 all but the quantised matrix products runs in bf16, where the CPU has it.
    const bool bf16 = precision == "bf16" || (precision == "int8" && has("BF16"));
    ov::AnyMap config{{"PERFORMANCE_HINT", "LATENCY"},
                      {"INFERENCE_PRECISION_HINT", bf16 ? "bf16" : "f32"},
                      {"ENABLE_CPU_PINNING", false},
                      {"CPU_RUNTIME_CACHE_CAPACITY", MAX_PREPARED}};
    if (threads) config["INFERENCE_NUM_THREADS"] = static_cast<int>(threads);
    return config;
}

// OpenVINO takes inputs by mutable pointers, and does not write them.
template <typename T>
ov::Tensor view(const T* data, const ov::Shape& shape) {
    return ov::Tensor(ov::element::from<T>(), shape, const_cast<T*>(data));
}

class OpenVinoBackend : public Backend {
  public:
    OpenVinoBackend(Graphs graphs, std::size_t embed_dim, const std::string& precision, unsigned threads)
        : embed_dim_(embed_dim),
          crew_(std::make_shared<Crew>(threads ? threads : std::thread::hardware_concurrency())),
          config_(configuration(core_, precision, threads)),
          padded_(precision != "fp32"),
          image_encoder_(core_, std::move(graphs.image_encoder), config_, padded_,
                         int8(graphs, "image_encoder")),
          text_encoder_(core_, std::move(graphs.text_encoder), config_, padded_,
                        int8(graphs, "text_encoder")),
          fusion_(core_, std::move(graphs.fusion), config_, padded_, int8(graphs, "fusion")) {}

    void embed(const Batch& batch, float* out) override {
        try {
            embed_batch(batch, out);
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw BackendError(std::string("openvino failed: ") + error.what());
        }
    }

  private:
    void embed_batch(const Batch& batch, float* out) {
        std::vector<float> images, texts;  // copies: another call may take the request that made them
        ov::Tensor image_tokens, text_tokens;
        if (batch.pixel_values)
            image_encoder_.run([&](ov::InferRequest& request) {
                request.set_tensor("pixel_values",
                                   view(batch.pixel_values, {batch.size, 3, batch.height, batch.width}));
                request.infer();
                image_tokens = copied(request.get_output_tensor(), images);
            });
        if (batch.input_ids && encode_few(batch, texts))
            text_tokens = view(texts.data(), {batch.size, batch.tokens, embed_dim_});
        else if (batch.input_ids)
            text_encoder_.run([&](ov::InferRequest& request) {
                const ov::Shape shape{batch.size, batch.tokens};
                request.set_tensor("input_ids", view(batch.input_ids, shape));
                request.set_tensor("attention_mask", view(batch.attention_mask, shape));
                request.infer();
                text_tokens = copied(request.get_output_tensor(), texts);
            });
        if (!fuse_items(batch, images, texts, out)) fuse(batch, image_tokens, text_tokens, out);
    }

    // Few tokens of text, by the core; false if there are many, or the encoder is of another kind.
    bool encode_few(const Batch& batch, std::vector<float>& texts) {
        if (padded_ || !row_kernels()) return false;
        std::call_once(bert_encoder_read_,
                       [&] { bert_encoder_ = bert_encoder(text_encoder_.model(), crew_); });
        return bert_encoder_ && bert_encoder_->embed_dim() == embed_dim_ &&
               bert_encoder_->encode(batch.input_ids, batch.attention_mask, batch.size, batch.tokens, texts);
    }

    // By the core; false if that is slower than a graph in bf16, or the fusion is of another kind.
    bool fuse_items(const Batch& batch, const std::vector<float>& images, std::vector<float>& texts,
                    float* out) {
        std::call_once(item_fusion_read_, [&] { item_fusion_ = item_fusion(fusion_.model(), crew_); });
        const std::size_t length = batch.input_ids ? batch.tokens : 0,
                          image_count = images.size() / embed_dim_ / batch.size;
        if (!item_fusion_ || item_fusion_->embed_dim() != embed_dim_ ||
            texts.size() != batch.size * length * embed_dim_ ||
            images.size() != batch.size * image_count * embed_dim_)
            return false;  // the graph says what is wrong

        std::vector<std::size_t> seen(batch.size);  // tokens of each text but for its padding
        std::size_t tokens = batch.size * image_count;
        for (std::size_t row = 0; row < batch.size && length; ++row) {
            const auto* mask = batch.attention_mask + row * length;
            seen[row] = length - static_cast<std::size_t>(std::count(mask, mask + length, 0));
            if (!seen[row]) return false;
            tokens += seen[row];
        }
        if (padded_ && tokens > ItemFusion::FEW_TOKENS) return false;
        std::vector<ItemFusion::Item> items;
        for (std::size_t row = 0; row < batch.size; ++row) {
            float* text = texts.data() + row * length * embed_dim_;
            for (std::size_t i = 0, kept = 0; kept < seen[row]; ++i)
                if (batch.attention_mask[row * length + i] != 0)
                    std::copy_n(text + i * embed_dim_, embed_dim_, text + kept++ * embed_dim_);
            items.push_back(
                {{images.data() + row * image_count * embed_dim_, image_count}, {text, seen[row]}});
        }
        item_fusion_->embed(items, out);
        return true;
    }

    // By the graph. An absent side is one zero token, which equals any number of them.
    void fuse(const Batch& batch, ov::Tensor image_tokens, ov::Tensor text_tokens, float* out) {
        const std::vector<float> absent(batch.size * embed_dim_);
        const std::vector<std::int64_t> one(batch.size, 1);
        ov::Tensor text_mask = view(one.data(), {batch.size, 1});
        if (batch.input_ids)
            text_mask = view(batch.attention_mask, {batch.size, batch.tokens});
        else
            text_tokens = view(absent.data(), {batch.size, 1, embed_dim_});
        if (!batch.pixel_values) image_tokens = view(absent.data(), {batch.size, 1, embed_dim_});
        std::vector<float> indicator;
        for (std::size_t row = 0; row < batch.size; ++row) {
            indicator.push_back(batch.pixel_values ? 1.0f : 0.0f);
            indicator.push_back(batch.input_ids ? 1.0f : 0.0f);
        }
        fusion_.run([&](ov::InferRequest& request) {
            request.set_tensor("image_tokens", image_tokens);
            request.set_tensor("text_tokens", text_tokens);
            request.set_tensor("text_mask", text_mask);
            request.set_tensor("modality_indicator", view(indicator.data(), {batch.size, 2}));
            request.infer();
            const ov::Tensor embedding = request.get_output_tensor();
            if (embedding.get_shape() != ov::Shape{batch.size, embed_dim_})
                throw BackendError("the fusion graph gave another shape than (batch, embed_dim)");
            std::memcpy(out, embedding.data<float>(), batch.size * embed_dim_ * sizeof(float));
        });
    }

    static std::vector<QuantizedInput> int8(const Graphs& graphs, const std::string& graph) {
        const auto found = graphs.int8.find(graph);
        return found == graphs.int8.end() ? std::vector<QuantizedInput>() : found->second;
    }

    static ov::Tensor copied(const ov::Tensor& tensor, std::vector<float>& kept) {
        kept.assign(tensor.data<float>(), tensor.data<float>() + tensor.get_size());
        return view(kept.data(), tensor.get_shape());
    }

    ov::Core core_ = made_core();
    std::size_t embed_dim_;
    std::shared_ptr<Crew> crew_;  // for both of what the core computes
    ov::AnyMap config_;
    bool padded_;  // products in fp32 don't mind their number of rows
    CompiledGraph image_encoder_, text_encoder_, fusion_;
    std::once_flag bert_encoder_read_, item_fusion_read_;
    std::optional<BertEncoder> bert_encoder_;
    std::optional<ItemFusion> item_fusion_;
};

}  // namespace

std::unique_ptr<Backend> openvino_backend(Graphs graphs, std::size_t embed_dim, const std::string& precision,
                                          unsigned threads) {
    try {
        return std::make_unique<OpenVinoBackend>(std::move(graphs), embed_dim, precision, threads);
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw BackendError(std::string("OpenVINO cannot be used: ") + error.what());
    }
}

}  // namespace uniecs
