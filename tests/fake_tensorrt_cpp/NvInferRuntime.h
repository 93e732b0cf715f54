// A stand-in for the part of TensorRT's header that sdk/cpp uses, with its names and types; no code of it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace nvinfer1 {

class ILogger {
  public:
    enum class Severity : std::int32_t {
        kINTERNAL_ERROR = 0,
        kERROR = 1,
        kWARNING = 2,
        kINFO = 3,
        kVERBOSE = 4
    };
    virtual ~ILogger() = default;
    virtual void log(Severity severity, char const* message) noexcept = 0;
};

struct Dims {
    std::int32_t nbDims;
    std::int64_t d[8];
};

enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kINT64 = 8 };
enum class ExecutionContextAllocationStrategy : std::int32_t {
    kSTATIC = 0,
    kON_PROFILE_CHANGE = 1,
    kUSER_MANAGED = 2
};

class IExecutionContext {
  public:
    virtual ~IExecutionContext() = default;
    virtual bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t stream) noexcept = 0;
    virtual void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept = 0;
    virtual bool setInputShape(char const* name, Dims const& dims) noexcept = 0;
    virtual bool setTensorAddress(char const* name, void* data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
  public:
    virtual ~ICudaEngine() = default;
    virtual IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy strategy) noexcept = 0;
    virtual std::int64_t getDeviceMemorySizeV2() const noexcept = 0;
    virtual DataType getTensorDataType(char const* name) const noexcept = 0;
};

class IRuntime {
  public:
    virtual ~IRuntime() = default;
    virtual ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept = 0;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1

extern "C" std::int32_t getInferLibMajorVersion() noexcept;
extern "C" std::int32_t getInferLibMinorVersion() noexcept;
extern "C" std::int32_t getInferLibPatchVersion() noexcept;
extern "C" std::int32_t getInferLibBuildVersion() noexcept;
