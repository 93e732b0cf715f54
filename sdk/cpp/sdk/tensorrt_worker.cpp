#include "tensorrt_worker.hpp"

#include <algorithm>
#include <cstring>

namespace uniecs {
namespace {

// As in tensorrt_worker.py and tensorrt.py.
constexpr std::size_t CAPTURED_BATCH = 4, CAPTURED_JOBS = 32, TEXT_STEP = 8;

std::size_t bytes_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
            return 4;
        case nvinfer1::DataType::kHALF:
            return 2;
        case nvinfer1::DataType::kINT64:
            return 8;
        default:
            throw BackendError("an engine has a tensor that is not float32, float16 or int64");
    }
}

nvinfer1::Dims dims(std::initializer_list<std::size_t> sizes) {
    nvinfer1::Dims made{};
    for (const std::size_t size : sizes) made.d[made.nbDims++] = static_cast<std::int64_t>(size);
    return made;
}

void set_shape(nvinfer1::IExecutionContext& context, const char* name, const nvinfer1::Dims& shape) {
    if (!context.setInputShape(name, shape))
        throw BackendError(std::string("the engine refuses the shape of ") + name);
}

void set_address(nvinfer1::IExecutionContext& context, const char* name, const cuda::Device& place) {
    if (!context.setTensorAddress(name, place.get()))
        throw BackendError(std::string("the engine has no tensor ") + name);
}

}  // namespace

Worker::Worker(const Engines& engines, bool captures) : engines_(engines), captures_(captures) {
    const auto most = static_cast<std::size_t>(engines.profile.batch[2]);
    const auto texts = static_cast<std::size_t>(engines.profile.text_length[2]);
    const auto images = static_cast<std::size_t>(engines.profile.image_length[2]);
    const auto place = [](std::size_t bytes) { return Place{cuda::pinned(bytes), cuda::device(bytes)}; };
    pixel_values_ = place(most * 3 * engines.height * engines.width * sizeof(float));
    input_ids_ = place(most * texts * sizeof(std::int64_t));
    mask_ = place(most * texts * sizeof(std::int64_t));
    indicator_ = place(most * 2 * sizeof(float));
    embedding_ = place(most * engines.embed_dim * sizeof(float));
    const std::size_t token = engines.embed_dim * bytes_of(engines.fusion->getTensorDataType("image_tokens"));
    image_tokens_ = cuda::device(most * images * token);
    text_tokens_ = cuda::device(most * texts * token);
    zero_token_ = cuda::device(most * token);
    cuda::check(cudaMemsetAsync(zero_token_.get(), 0, most * token, stream_.get()), "set memory");
    for (const auto* engine : {&engines.image_encoder, &engines.text_encoder, &engines.fusion})
        scratch_bytes_ = std::max(
            {scratch_bytes_, std::size_t{1}, static_cast<std::size_t>((*engine)->getDeviceMemorySizeV2())});
    scratch_ = cuda::device(scratch_bytes_);
    contexts_ = contexts({true, true, 1, 1});
    stream_.wait();
}

void Worker::embed(const Batch& batch, float* out) {
    const auto texts = static_cast<std::size_t>(engines_.profile.text_length[2]);
    const std::size_t padded = (batch.tokens + TEXT_STEP - 1) / TEXT_STEP * TEXT_STEP;
    const bool text = batch.input_ids != nullptr;
    const Job job{batch.pixel_values != nullptr, text, batch.size, text ? std::min(padded, texts) : 1};
    fill(job, batch);
    if (const Captured* captured = captures_ && job.size <= CAPTURED_BATCH ? graph_of(job) : nullptr) {
        cuda::check(cudaGraphLaunch(captured->graph.get(), stream_.get()), "launch a graph");
    } else {
        bind(job, contexts_);
        enqueue(job, contexts_);
    }
    stream_.wait();
    std::memcpy(out, embedding_.host.get(), batch.size * engines_.embed_dim * sizeof(float));
}

// Inputs into pinned memory; texts padded with zeros.
void Worker::fill(const Job& job, const Batch& batch) const {
    if (job.image)
        std::memcpy(pixel_values_.host.get(), batch.pixel_values,
                    batch.size * 3 * engines_.height * engines_.width * sizeof(float));
    auto* ids = input_ids_.as<std::int64_t>();
    auto* mask = mask_.as<std::int64_t>();
    std::fill_n(mask, job.size * job.tokens, job.text ? 0 : 1);
    if (job.text) std::fill_n(ids, job.size * job.tokens, 0);
    for (std::size_t row = 0; job.text && row < job.size; ++row) {
        std::copy_n(batch.input_ids + row * batch.tokens, batch.tokens, ids + row * job.tokens);
        std::copy_n(batch.attention_mask + row * batch.tokens, batch.tokens, mask + row * job.tokens);
    }
    for (std::size_t row = 0; row < job.size; ++row) {
        indicator_.as<float>()[2 * row] = job.image ? 1.0f : 0.0f;
        indicator_.as<float>()[2 * row + 1] = job.text ? 1.0f : 0.0f;
    }
}

Worker::Context Worker::context(nvinfer1::ICudaEngine& engine) const {
    Context made(engine.createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (!made || !made->setOptimizationProfileAsync(0, stream_.get()))
        throw BackendError("TensorRT cannot make an execution context: is the GPU's memory full?");
    made->setDeviceMemoryV2(scratch_.get(), static_cast<std::int64_t>(scratch_bytes_));
    return made;
}

Worker::Contexts Worker::contexts(const Job& job) const {
    return {job.image ? context(*engines_.image_encoder) : nullptr,
            job.text ? context(*engines_.text_encoder) : nullptr, context(*engines_.fusion)};
}

// Shapes and places of the tensors. An absent side is one zero token, which equals any number of them.
void Worker::bind(const Job& job, const Contexts& contexts) const {
    const auto images = static_cast<std::size_t>(engines_.profile.image_length[2]);
    if (job.image) {
        nvinfer1::IExecutionContext& encoder = *contexts.image_encoder;
        set_shape(encoder, "pixel_values", dims({job.size, 3, engines_.height, engines_.width}));
        set_address(encoder, "pixel_values", pixel_values_.device);
        set_address(encoder, "image_tokens", image_tokens_);
    }
    if (job.text) {
        nvinfer1::IExecutionContext& encoder = *contexts.text_encoder;
        for (const char* name : {"input_ids", "attention_mask"})
            set_shape(encoder, name, dims({job.size, job.tokens}));
        set_address(encoder, "input_ids", input_ids_.device);
        set_address(encoder, "attention_mask", mask_.device);
        set_address(encoder, "text_tokens", text_tokens_);
    }
    nvinfer1::IExecutionContext& fusion = *contexts.fusion;
    set_shape(fusion, "image_tokens", dims({job.size, job.image ? images : 1, engines_.embed_dim}));
    set_shape(fusion, "text_tokens", dims({job.size, job.tokens, engines_.embed_dim}));
    set_shape(fusion, "text_mask", dims({job.size, job.tokens}));
    set_shape(fusion, "modality_indicator", dims({job.size, 2}));
    set_address(fusion, "image_tokens", job.image ? image_tokens_ : zero_token_);
    set_address(fusion, "text_tokens", job.text ? text_tokens_ : zero_token_);
    set_address(fusion, "text_mask", mask_.device);
    set_address(fusion, "modality_indicator", indicator_.device);
    set_address(fusion, "embedding", embedding_.device);
}

// Upload, run, download, in the order of the stream.
void Worker::enqueue(const Job& job, const Contexts& contexts) const {
    const auto upload = [&](const Place& place, std::size_t bytes) {
        cuda::check(cudaMemcpyAsync(place.device.get(), place.host.get(), bytes, cudaMemcpyHostToDevice,
                                    stream_.get()),
                    "copy to the GPU");
    };
    const auto run = [&](const Context& context) {
        if (context && !context->enqueueV3(stream_.get()))
            throw BackendError("TensorRT failed to run a graph");
    };
    if (job.image) upload(pixel_values_, job.size * 3 * engines_.height * engines_.width * sizeof(float));
    if (job.text) upload(input_ids_, job.size * job.tokens * sizeof(std::int64_t));
    upload(mask_, job.size * job.tokens * sizeof(std::int64_t));
    upload(indicator_, job.size * 2 * sizeof(float));
    if (job.image) run(contexts.image_encoder);
    if (job.text) run(contexts.text_encoder);
    run(contexts.fusion);
    cuda::check(
        cudaMemcpyAsync(embedding_.host.get(), embedding_.device.get(),
                        job.size * engines_.embed_dim * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()),
        "copy from the GPU");
}

// The CUDA graph of a job: captured when it comes for the second time, nullptr before.
const Worker::Captured* Worker::graph_of(const Job& job) {
    const auto same = [&](const Captured& each) { return each.job == job; };
    const auto found = std::find_if(captured_.begin(), captured_.end(), same);
    if (found != captured_.end()) {
        captured_.splice(captured_.begin(), captured_, found);
        return &captured_.front();
    }
    if (seen_.insert(job).second) return nullptr;
    captured_.push_front(capture(job));
    if (captured_.size() > CAPTURED_JOBS) captured_.pop_back();
    return &captured_.front();
}

Worker::Captured Worker::capture(const Job& job) const {
    Captured made{job, contexts(job), nullptr};
    bind(job, made.contexts);
    // After a change of shapes the first run updates a context's state, which must not become part of the
    // graph.
    enqueue(job, made.contexts);
    stream_.wait();
    cudaGraph_t graph = nullptr;
    try {
        // Relaxed: other threads go on allocating and copying meanwhile.
        cuda::check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeRelaxed), "begin a capture");
        enqueue(job, made.contexts);
        cuda::check(cudaStreamEndCapture(stream_.get(), &graph), "end a capture");
        cudaGraphExec_t ready = nullptr;
        const cudaError_t status = cudaGraphInstantiate(&ready, graph, 0);
        cudaGraphDestroy(graph);
        cuda::check(status, "make a graph");
        made.graph.reset(ready);
    } catch (const BackendError& error) {
        throw CaptureError(error.what());
    }
    return made;
}

}  // namespace uniecs
