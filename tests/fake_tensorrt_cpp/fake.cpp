// Stand-ins for TensorRT and the CUDA runtime that run on a CPU and keep the rules of the real ones, as
// tests/fake_tensorrt.py: an engine is what that one builds, a profile and an ONNX graph, computed by
// OpenVINO at the addresses it was given. Device memory is known as such and starts as NaN; work on a stream
// waits for cudaStreamSynchronize; a context needs its profile, scratch memory and every shape and address,
// and must have run once after a change of shapes before it is captured; a CUDA graph fails once the context
// it came from was bound to something else. A broken rule ends the process. $FAKE_LOG is a file of what
// happened.
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

#include "json.hpp"  // sdk/cpp/src

namespace {

using Work = std::function<void()>;
std::mutex lock;  // of everything here
std::map<char*, std::size_t> on_device, on_host;

void rule(bool kept, const char* what) {
    if (kept) return;
    std::fprintf(stderr, "broken rule: %s\n", what);
    std::abort();
}

void note(const char* what) {
    const char* path = std::getenv("FAKE_LOG");
    if (std::FILE* file = path ? std::fopen(path, "a") : nullptr)
        std::fprintf(file, "%s\n", what), std::fclose(file);
}

bool within(const std::map<char*, std::size_t>& places, const void* memory, std::size_t size) {
    auto* const at = static_cast<char*>(const_cast<void*>(memory));
    auto place = places.upper_bound(at);
    if (place == places.begin()) return false;
    --place;
    return at + size <= place->first + place->second;
}

cudaError_t allocate(std::map<char*, std::size_t>& places, void** memory, std::size_t size) {
    const std::lock_guard<std::mutex> held(lock);
    auto* made = static_cast<char*>(std::malloc(size));
    std::memset(made, 0xFF, size);
    places[made] = size;
    *memory = made;
    return cudaSuccess;
}

cudaError_t release(std::map<char*, std::size_t>& places, void* memory) {
    const std::lock_guard<std::mutex> held(lock);
    rule(places.erase(static_cast<char*>(memory)) == 1, "memory freed that was not allocated");
    std::free(memory);
    return cudaSuccess;
}

}  // namespace

struct CUstream_st {
    std::vector<Work> work;
    std::unique_ptr<std::vector<Work>> captured;

    void add(Work each) { (captured ? *captured : work).push_back(std::move(each)); }
};
struct CUgraph_st {
    std::vector<Work> work;
};
struct CUgraphExec_st {
    std::vector<Work> work;
};

namespace {

using Shapes = std::map<std::string, ov::Shape>;
using Addresses = std::map<std::string, void*>;

class Engine : public nvinfer1::ICudaEngine {
  public:
    static constexpr std::int64_t SCRATCH = 256;

    explicit Engine(const std::string& data) {
        const std::size_t line = data.find('\n');
        const uniecs::json::Value read = uniecs::json::parse(data.substr(0, line));
        for (const auto& [name, shapes] : read.object()) {
            const uniecs::json::Array& three = shapes.array();
            for (std::size_t i = 0; i < three.at(0).array().size(); ++i)
                profile[name].push_back({three.at(0).array()[i].integer(), three.at(2).array()[i].integer()});
        }
        model_ = core().read_model(data.substr(line + 1), ov::Tensor());
        for (const auto& port : model_->inputs()) types[port.get_any_name()] = port.get_element_type();
        for (const auto& port : model_->outputs()) types[port.get_any_name()] = port.get_element_type();
        output_ = model_->output().get_any_name();
    }

    nvinfer1::IExecutionContext* createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;
    std::int64_t getDeviceMemorySizeV2() const noexcept override { return SCRATCH; }
    nvinfer1::DataType getTensorDataType(char const* name) const noexcept override {
        const ov::element::Type type = types.at(name);
        return type == ov::element::f32   ? nvinfer1::DataType::kFLOAT
               : type == ov::element::f16 ? nvinfer1::DataType::kHALF
                                          : nvinfer1::DataType::kINT64;
    }

    void compute(const Shapes& shapes, const Addresses& addresses) {
        std::map<std::string, ov::PartialShape> sizes(shapes.begin(), shapes.end());
        const std::shared_ptr<ov::Model> model = model_->clone();
        model->reshape(sizes);
        ov::InferRequest request =
            core()
                .compile_model(model, "CPU",
                               {{"INFERENCE_PRECISION_HINT", "f32"}, {"INFERENCE_NUM_THREADS", 1}})
                .create_infer_request();
        for (const auto& [name, shape] : shapes) {
            const ov::Tensor given(types.at(name), shape, addresses.at(name));
            rule(within(on_device, given.data(), given.get_byte_size()), "an input is not on the device");
            request.set_tensor(name, given);
        }
        request.infer();
        const ov::Tensor made = request.get_output_tensor();
        rule(within(on_device, addresses.at(output_), made.get_byte_size()),
             "the output is not on the device");
        std::memcpy(addresses.at(output_), made.data(), made.get_byte_size());
    }

    std::map<std::string, std::vector<std::pair<std::int64_t, std::int64_t>>> profile;
    std::map<std::string, ov::element::Type> types;

  private:
    static ov::Core& core() {
        static ov::Core made;
        return made;
    }

    std::shared_ptr<ov::Model> model_;
    std::string output_;
};

class Context : public nvinfer1::IExecutionContext {
  public:
    explicit Context(Engine& engine) : engine_(engine) {}

    bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t) noexcept override {
        profiled_ = profile == 0;
        return profiled_;
    }
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
        const std::lock_guard<std::mutex> held(lock);
        rule(within(on_device, memory, static_cast<std::size_t>(size)), "scratch is not on the device");
        scratch_ = size;
    }
    bool setInputShape(char const* name, nvinfer1::Dims const& dims) noexcept override {
        const auto found = engine_.profile.find(name);
        if (found == engine_.profile.end() || found->second.size() != static_cast<std::size_t>(dims.nbDims))
            return false;
        ov::Shape shape;
        for (std::int32_t i = 0; i < dims.nbDims; ++i) {
            const auto [least, most] = found->second[static_cast<std::size_t>(i)];
            if (dims.d[i] < least || dims.d[i] > most) return false;
            shape.push_back(static_cast<std::size_t>(dims.d[i]));
        }
        shapes_[name] = shape;
        return true;
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses_[name] = data;
        return engine_.types.count(name) == 1;
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        const std::lock_guard<std::mutex> held(lock);
        rule(profiled_ && scratch_ >= Engine::SCRATCH, "a context without its profile or scratch memory");
        rule(shapes_.size() == engine_.profile.size(), "an input has no shape");
        rule(addresses_.size() == engine_.types.size(), "a tensor has no address");
        const auto bound = std::make_pair(shapes_, addresses_);
        rule(!stream->captured || warm_ == bound, "captured without a run after the change of shapes");
        stream->add([this, bound] {
            rule(bound == std::make_pair(shapes_, addresses_), "bound anew before the work was done");
            warm_ = bound;
            note("run");
            engine_.compute(bound.first, bound.second);
        });
        return true;
    }

  private:
    Engine& engine_;
    bool profiled_ = false;
    std::int64_t scratch_ = 0;
    Shapes shapes_;
    Addresses addresses_;
    std::pair<Shapes, Addresses> warm_;
};

nvinfer1::IExecutionContext* Engine::createExecutionContext(
    nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept {
    rule(strategy == nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED,
         "scratch memory is the caller's");
    return new Context(*this);
}

class Runtime : public nvinfer1::IRuntime {
  public:
    explicit Runtime(nvinfer1::ILogger& logger) : logger_(logger) {}

    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        const std::string data(static_cast<const char*>(blob), size);
        if (data.rfind("{", 0) == 0) return new Engine(data);
        logger_.log(nvinfer1::ILogger::Severity::kERROR, "bad magic");
        return nullptr;
    }

  private:
    nvinfer1::ILogger& logger_;
};

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept { return new Runtime(logger); }

extern "C" {

std::int32_t getInferLibMajorVersion() noexcept { return 10; }
std::int32_t getInferLibMinorVersion() noexcept { return 9; }
std::int32_t getInferLibPatchVersion() noexcept { return 0; }
std::int32_t getInferLibBuildVersion() noexcept { return 34; }

int nvmlInit_v2() { return 0; }
int nvmlSystemGetDriverVersion(char* version, unsigned length) {
    std::snprintf(version, length, "580.65.06");
    return 0;
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error"; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* gpu, int) {
    std::snprintf(gpu->name, sizeof gpu->name, "%s",
                  std::getenv("FAKE_GPU") ? std::getenv("FAKE_GPU") : "Fake GPU");
    gpu->major = 8, gpu->minor = 6;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t size) { return allocate(on_device, memory, size); }
cudaError_t cudaFree(void* memory) { return memory ? release(on_device, memory) : cudaSuccess; }
cudaError_t cudaMallocHost(void** memory, std::size_t size) { return allocate(on_host, memory, size); }
cudaError_t cudaFreeHost(void* memory) { return memory ? release(on_host, memory) : cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return *stream = new CUstream_st, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const std::lock_guard<std::mutex> held(lock);
    rule(!stream->captured, "waiting for a stream that is captured");
    for (const Work& each : std::exchange(stream->work, {})) each();
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t size, cudaStream_t stream) {
    const std::lock_guard<std::mutex> held(lock);
    rule(within(on_device, memory, size), "memory to be set is not on the device");
    stream->add([=] { std::memset(memory, value, size); });
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    const std::lock_guard<std::mutex> held(lock);
    const bool up = kind == cudaMemcpyHostToDevice;
    rule(within(up ? on_device : on_host, to, size) && within(up ? on_host : on_device, from, size),
         "a copy between the wrong sides, or beyond an end");
    stream->add([=] { std::memcpy(to, from, size); });
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (std::getenv("FAKE_NO_CAPTURE")) return cudaErrorStreamCaptureUnsupported;
    const std::lock_guard<std::mutex> held(lock);
    stream->captured = std::make_unique<std::vector<Work>>();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const std::lock_guard<std::mutex> held(lock);
    *graph = new CUgraph_st{std::move(*stream->captured)};
    stream->captured.reset();
    note("capture");
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    return *ready = new CUgraphExec_st{graph->work}, cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    const std::lock_guard<std::mutex> held(lock);
    note("launch");
    for (const Work& each : graph->work) stream->add(each);
    return cudaSuccess;
}
}
