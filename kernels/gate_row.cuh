// The gate's arithmetic for one row, in the order the GPU does it: gate.cu runs it on the device, and
// tests/gate_host.cu on the CPU, where it is held against float64. The contract is in gate.py and
// docs/kernels.md.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

// X(name, type, vectors): every kernel there is, by its number of 16-byte vectors a lane; gate.py's VECTORS.
#define UNIECS_GATE_KERNELS(X) \
    X(fp16, __half, 1)         \
    X(fp16, __half, 2)         \
    X(fp16, __half, 3)         \
    X(fp16, __half, 4)         \
    X(bf16, __nv_bfloat16, 1)  \
    X(bf16, __nv_bfloat16, 2)  \
    X(bf16, __nv_bfloat16, 3)  \
    X(bf16, __nv_bfloat16, 4)  \
    X(fp32, float, 1)          \
    X(fp32, float, 2)          \
    X(fp32, float, 3)          \
    X(fp32, float, 4)          \
    X(fp32, float, 6)          \
    X(fp32, float, 8)

// The arguments of every kernel, in the order TensorRT passes them: inputs, int32 scalars, outputs.
#define UNIECS_GATE_PARAMETERS(T)                                                                        \
    const T *__restrict__ x, const T *__restrict__ yz, const T *__restrict__ u,                          \
        const float *__restrict__ indicator, const float *__restrict__ parameters, int rows, int tokens, \
        int dim, int u_stride, int column, T *__restrict__ out
#define UNIECS_GATE_ARGUMENTS x, yz, u, indicator, parameters, rows, tokens, dim, u_stride, column, out

namespace uniecs {

constexpr int kLanes = 32;
// torch.nn.LayerNorm's default; the model has no other.
constexpr float kEpsilon = 1e-5f;

// The four bytes in which elements travel through registers, and their floats.
template <typename T>
struct Word;

template <>
struct Word<float> {
    static constexpr int kSize = 1;
    float bits;
    __host__ __device__ void unpack(float (&to)[1]) const { to[0] = bits; }
    __host__ __device__ void pack(const float (&from)[1]) { bits = from[0]; }
};

template <>
struct Word<__half> {
    static constexpr int kSize = 2;
    uint32_t bits;  // not __half2, whose own copy operators split the load in four
    __host__ __device__ void unpack(float (&to)[2]) const {
        __half2 both;
        memcpy(&both, &bits, sizeof bits);
        const float2 values = __half22float2(both);
        to[0] = values.x, to[1] = values.y;
    }
    __host__ __device__ void pack(const float (&from)[2]) {
        const __half2 both = __floats2half2_rn(from[0], from[1]);
        memcpy(&bits, &both, sizeof bits);
    }
};

template <>
struct Word<__nv_bfloat16> {
    static constexpr int kSize = 2;
    uint32_t bits;
    // A bfloat16 is the upper half of its float; shifts keep both in one register until they are used.
    __host__ __device__ void unpack(float (&to)[2]) const {
        const uint32_t both[2] = {bits << 16, bits & 0xffff0000u};
        memcpy(to, both, sizeof both);
    }
    __host__ __device__ void pack(const float (&from)[2]) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(from[0], from[1]);
        memcpy(&bits, &both, sizeof bits);
    }
};

// 16 bytes, which travel in one load or store.
template <typename T>
struct alignas(16) Vector {
    static constexpr int kWords = 4, kSize = 16 / sizeof(T);
    Word<T> words[kWords];

    __host__ __device__ static Vector load(const T* from) { return *reinterpret_cast<const Vector*>(from); }
    __host__ __device__ void store(T* to) const { *reinterpret_cast<Vector*>(to) = *this; }
};

// Overflow of exp is right: the quotient is then 0.
__host__ __device__ inline float sigmoid(float logit) {
#ifdef __CUDA_ARCH__
    return __fdividef(1.0f, 1.0f + expf(-logit));  // within 2 ulp of the division, without its slow path
#else
    return 1.0f / (1.0f + expf(-logit));
#endif
}

// Where a row lies. `bias` is the line of the gate's two-row bias that the row's indicator picks.
template <typename T>
struct Row {
    const T *x, *y, *z, *u;
    const float *gamma, *beta, *bias;
    T* out;

    __host__ __device__ static Row at(int64_t row, UNIECS_GATE_PARAMETERS(T)) {
        const int sample = static_cast<int>(row) / tokens;
        const bool present = indicator[2 * sample + column] != 0.0f;
        const T* y = yz + row * dim * 2;
        return {x + row * dim,
                y,
                y + dim,
                u + row * u_stride,
                parameters,
                parameters + dim,
                parameters + (present ? 3 : 2) * dim,
                out + row * dim};
    }
};

// What one lane holds of its row, in registers: the vectors lane, lane + 32, lane + 64, ...
template <typename T, int kVectors>
struct Lane {
    Vector<T> x[kVectors], y[kVectors], z[kVectors], u[kVectors];

    __host__ __device__ static int start(int lane, int i) { return (lane + i * kLanes) * Vector<T>::kSize; }

    // All loads are under way before the first is used.
    __host__ __device__ void load(const Row<T>& row, int lane, int dim) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            const int at = start(lane, i);
            if (at >= dim) continue;
            y[i] = Vector<T>::load(row.y + at);
            z[i] = Vector<T>::load(row.z + at);
            u[i] = Vector<T>::load(row.u + at);
            x[i] = Vector<T>::load(row.x + at);
        }
    }

    // The lane's part of sum(y^2). The mean of y is 0, so this is LayerNorm's variance times dim.
    __host__ __device__ float square_sum(int lane, int dim) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            if (start(lane, i) >= dim) continue;
#pragma unroll
            for (const Word<T>& word : y[i].words) {
                float values[Word<T>::kSize];
                word.unpack(values);
#pragma unroll
                for (float value : values) sum = fmaf(value, value, sum);
            }
        }
        return sum;
    }

    // LayerNorm, gate (eq. 3) and blend (eq. 4), given sum(y^2) over the row.
    __host__ __device__ void finish(const Row<T>& row, int lane, int dim, float sum) const {
        const float scale = rsqrtf(sum / static_cast<float>(dim) + kEpsilon);
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            const int at = start(lane, i);
            if (at < dim) finish_vector(row, i, at, scale);
        }
    }

  private:
    __host__ __device__ void finish_vector(const Row<T>& row, int i, int at, float scale) const {
        constexpr int kPair = Word<T>::kSize;
        Vector<T> result;
        // Parameters come four at a time: what meets four words of float, or two of half.
#pragma unroll
        for (int block = 0; block < Vector<T>::kSize; block += 4) {
            const float4 gammas = *reinterpret_cast<const float4*>(row.gamma + at + block);
            const float4 betas = *reinterpret_cast<const float4*>(row.beta + at + block);
            const float4 biases = *reinterpret_cast<const float4*>(row.bias + at + block);
            const float gamma[4] = {gammas.x, gammas.y, gammas.z, gammas.w};
            const float beta[4] = {betas.x, betas.y, betas.z, betas.w};
            const float bias[4] = {biases.x, biases.y, biases.z, biases.w};
#pragma unroll
            for (int p = 0; p < 4; p += kPair) {
                const int word = (block + p) / kPair;
                float own[kPair], ys[kPair], zs[kPair], us[kPair], blend[kPair];
                x[i].words[word].unpack(own);
                y[i].words[word].unpack(ys);
                z[i].words[word].unpack(zs);
                u[i].words[word].unpack(us);
#pragma unroll
                for (int k = 0; k < kPair; ++k) {
                    const float attended = fmaf(ys[k] * scale, gamma[p + k], beta[p + k]);
                    const float logit = fmaf(zs[k], scale, us[k] + bias[p + k]);
                    blend[k] = fmaf(sigmoid(logit), attended - own[k], own[k]);
                }
                result.words[word].pack(blend);
            }
        }
        result.store(row.out + at);
    }
};

}  // namespace uniecs
