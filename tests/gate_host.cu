// The row code of kernels/gate_row.cuh compiled for the CPU, with the kernels' names and arguments: the same
// storage, order of sums and roundings; only exp, rsqrt and the quotient in the sigmoid are the C library's.
#include "gate_row.cuh"

namespace {

template <typename T, int kVectors>
void gate(UNIECS_GATE_PARAMETERS(T)) {
    using uniecs::kLanes;
    for (int64_t row = 0; row < rows; ++row) {
        const uniecs::Row<T> at = uniecs::Row<T>::at(row, UNIECS_GATE_ARGUMENTS);
        uniecs::Lane<T, kVectors> warp[kLanes];
        float sums[kLanes], exchanged[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
            warp[lane].load(at, lane, dim);
            sums[lane] = warp[lane].square_sum(lane, dim);
        }
        for (int offset = kLanes / 2; offset > 0; offset /= 2) {
            for (int lane = 0; lane < kLanes; ++lane) exchanged[lane] = sums[lane] + sums[lane ^ offset];
            for (int lane = 0; lane < kLanes; ++lane) sums[lane] = exchanged[lane];
        }
        for (int lane = 0; lane < kLanes; ++lane) warp[lane].finish(at, lane, dim, sums[lane]);
    }
}

}  // namespace

#define UNIECS_GATE_ON_HOST(name, T, vectors)                                    \
    extern "C" void uniecs_gate_##name##_x##vectors(UNIECS_GATE_PARAMETERS(T)) { \
        gate<T, vectors>(UNIECS_GATE_ARGUMENTS);                                 \
    }
UNIECS_GATE_KERNELS(UNIECS_GATE_ON_HOST)
