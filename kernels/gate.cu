// The fused gate: LayerNorm, gate and blend of the folded GEMMs' outputs, one warp a row. Nothing is
// allocated, no shared memory is used, and every byte of x, y, z, u and out is touched once.
#include "gate_row.cuh"

namespace uniecs {

constexpr int kThreads = 128;  // gate.py's THREADS

template <typename T, int kVectors>
__device__ void gate(UNIECS_GATE_PARAMETERS(T)) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
    if (row >= rows) return;  // the whole warp leaves
    const int lane = threadIdx.x % kLanes;

    const Row<T> at = Row<T>::at(row, UNIECS_GATE_ARGUMENTS);
    Lane<T, kVectors> mine;
    mine.load(at, lane, dim);
    float sum = mine.square_sum(lane, dim);
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    mine.finish(at, lane, dim, sum);
}

}  // namespace uniecs

#define UNIECS_GATE_KERNEL(name, T, vectors)                         \
    extern "C" __global__ void __launch_bounds__(uniecs::kThreads)   \
        uniecs_gate_##name##_x##vectors(UNIECS_GATE_PARAMETERS(T)) { \
        uniecs::gate<T, vectors>(UNIECS_GATE_ARGUMENTS);             \
    }
UNIECS_GATE_KERNELS(UNIECS_GATE_KERNEL)
