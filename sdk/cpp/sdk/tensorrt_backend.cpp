#include <dlfcn.h>

#include <algorithm>
#include <mutex>
#include <sstream>

#include "bundle.hpp"
#include "tensorrt_worker.hpp"

namespace uniecs {
namespace {

// TensorRT's errors, kept for the messages of ours.
class Logger : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity != Severity::kINTERNAL_ERROR && severity != Severity::kERROR) return;
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            last_ = message;
        } catch (...) {  // no memory for a message: then without
        }
    }

    std::string last() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_.empty() ? "" : " (TensorRT: " + last_ + ")";
    }

  private:
    std::mutex mutex_;
    std::string last_;
};

// The first GPU is this thread's, and afterwards the one that was.
class FirstGpu {
  public:
    FirstGpu() {
        cuda::check(cudaGetDevice(&before_), "find a GPU");
        cuda::check(cudaSetDevice(0), "use the first GPU");
    }
    ~FirstGpu() { cudaSetDevice(before_); }
    FirstGpu(const FirstGpu&) = delete;
    FirstGpu& operator=(const FirstGpu&) = delete;

  private:
    int before_ = 0;
};

// The driver's version as Python's keys have it: "580.65.06" is "580.65.6". By NVML, which comes with it.
std::string driver_version() {
    void* nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!nvml) throw BackendError("the NVIDIA driver's libnvidia-ml.so.1 cannot be loaded");
    const auto init = reinterpret_cast<int (*)()>(dlsym(nvml, "nvmlInit_v2"));
    const auto version =
        reinterpret_cast<int (*)(char*, unsigned)>(dlsym(nvml, "nvmlSystemGetDriverVersion"));
    char text[96] = {};
    const bool told = init && version && init() == 0 && version(text, sizeof text) == 0;
    dlclose(nvml);
    if (!told) throw BackendError("the NVIDIA driver does not tell its version");
    std::istringstream parts(text);
    std::string made;
    for (std::string part; std::getline(parts, part, '.');)
        made += (made.empty() ? "" : ".") + std::to_string(std::stoul(part));
    return made;
}

Machine this_machine() {
    cudaDeviceProp gpu{};
    cuda::check(cudaGetDeviceProperties(&gpu, 0), "find a GPU");
    return {gpu.name, std::to_string(gpu.major) + "." + std::to_string(gpu.minor), driver_version(),
            std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) +
                "." + std::to_string(getInferLibPatchVersion()) + "." +
                std::to_string(getInferLibBuildVersion())};
}

class TensorRtBackend : public Backend {
  public:
    explicit TensorRtBackend(const Bundle& bundle)
        : runtime_(nvinfer1::createInferRuntime(logger_)),
          engines_{nullptr,
                   nullptr,
                   nullptr,
                   Profile(bundle.max_tokens, bundle.image_tokens),
                   bundle.embed_dim,
                   static_cast<std::size_t>(bundle.preprocessing.height_px),
                   static_cast<std::size_t>(bundle.preprocessing.width_px)} {
        if (!runtime_) throw BackendError("TensorRT cannot start" + logger_.last());
        if (bundle.image_tokens == 0)
            throw BundleError("bundle " + bundle.model_id + " does not give the shape of image_tokens");
        const FirstGpu first;
        const Machine machine = this_machine();
        const std::filesystem::path folder = engine_folder();
        const auto engine = [&](const char* graph) {
            const EngineKey key{bundle.model_id, graph, machine, engines_.profile};
            const std::string data = load_engine(folder, key);
            std::unique_ptr<nvinfer1::ICudaEngine> made(
                runtime_->deserializeCudaEngine(data.data(), data.size()));
            if (!made)
                throw BackendError("TensorRT " + machine.tensorrt + " cannot load " +
                                   key.path(folder).string() + logger_.last() +
                                   ": run `uniecs build BUNDLE` on this machine");
            return made;
        };
        engines_.image_encoder = engine("image_encoder");
        engines_.text_encoder = engine("text_encoder");
        engines_.fusion = engine("fusion");
    }

    void embed(const Batch& batch, float* out) override {
        const FirstGpu first;
        const auto most = static_cast<std::size_t>(engines_.profile.batch[2]);
        const std::size_t image = 3 * batch.height * batch.width;
        for (std::size_t start = 0; start < batch.size; start += most) {
            Batch part = batch;
            part.size = std::min(most, batch.size - start);
            if (batch.pixel_values) part.pixel_values += start * image;
            if (batch.input_ids) {
                part.input_ids += start * batch.tokens;
                part.attention_mask += start * batch.tokens;
            }
            embed_part(part, out + start * engines_.embed_dim);
        }
    }

  private:
    void embed_part(const Batch& batch, float* out) {
        // A worker whose call failed is left behind: its stream may be in any state.
        std::unique_ptr<Worker> worker = take();
        try {
            worker->embed(batch, out);
        } catch (const CaptureError&) {
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                captures_ = false;  // which only costs time
            }
            return embed_part(batch, out);
        } catch (const BackendError& error) {
            throw BackendError(error.what() + logger_.last());
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(std::move(worker));
    }

    std::unique_ptr<Worker> take() {
        bool captures = true;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            captures = captures_;
            if (!idle_.empty()) {
                std::unique_ptr<Worker> worker = std::move(idle_.back());
                idle_.pop_back();
                return worker;
            }
        }
        return std::make_unique<Worker>(engines_, captures);
    }

    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;  // outlives its engines
    Engines engines_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Worker>> idle_;
    bool captures_ = true;
};

}  // namespace

std::unique_ptr<Backend> tensorrt_backend(const Bundle& bundle) {
    return std::make_unique<TensorRtBackend>(bundle);
}

}  // namespace uniecs
