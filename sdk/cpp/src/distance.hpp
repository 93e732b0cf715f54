// Inner products of a prepared query with stored vectors, by the best instructions of the CPU that it runs
// on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "uniecs/graph.hpp"

namespace uniecs {

// Of int8 codes: what a code counts, and the vector's part of an inner product that they leave out.
struct Scale {
    float factor = 1, offset = 0;
};

// The greatest lengths of what vectors differ from the centre, and of what their codes differ from that.
struct Reach {
    float length = 0, error = 0;
};

// How one vector is laid down: `codes` bytes for the components, and a Scale. float16 and int8 keep the
// difference d of a vector v from a centre c, so that vectors that differ little are told apart. For float16
// v.w = d.w + c.w; for int8, with e the difference of w, v.w = d.e + (c.v - c.c / 2) + (c.w - c.c / 2), and
// the brackets are the offsets.
struct Codec {
    Storage storage;
    std::size_t dim;
    const float* centre;  // (dim,)

    std::size_t bytes() const;
    Scale encode(const float* vector, std::byte* codes) const;
    void decode(const std::byte* codes, Scale scale, float* vector) const;
    Reach reach(const float* vector, const std::byte* codes, Scale scale) const;  // of int8
};

// A vector in the form that stored ones are compared with: float32, or int8 beside its sum.
class Query {
  public:
    explicit Query(const Codec& codec) : codec_(codec) {}
    void set(const float* vector);
    void set_stored(const std::byte* codes, Scale scale);

    // Inner products with n stored vectors; the value for a vector does not depend on the others.
    void score(const std::byte* const* codes, const Scale* scales, std::size_t n, float* out) const;
    // The most by which a score by int8 codes may differ from the inner product of `vector`, which this was
    // set to, with any float32 vector within `stored`.
    float error(const float* vector, Reach stored) const;
    float score(const std::byte* codes, Scale scale) const {
        float out;
        score(&codes, &scale, 1, &out);
        return out;
    }

  private:
    void set_floats(const float* vector);

    Codec codec_;
    const float* floats_ = nullptr;
    float base_ = 0;  // of float16: the inner product with the centre
    std::vector<float> decoded_;
    std::vector<std::int8_t> signed_;
    Scale scale_;
    std::int32_t sum_ = 0;
};

// Inner products of a query with n vectors: float32 with float32, float32 with float16 (float out), and
// signed with unsigned bytes (int32 out).
using Dot = void (*)(const void* query, const std::byte* const* codes, std::size_t n, std::size_t dim,
                     void* out);
struct Kernels {
    const char* name;  // "avx512", "avx2" or "portable"
    Dot f32, f16, i8;
};

// What this CPU can run, the fastest first; the first is in use.
std::vector<Kernels> supported_kernels();
std::string instructions();

}  // namespace uniecs
