// Every set of instructions that this CPU has, against sums in double precision, at widths with and without a
// tail.
#include "../src/distance.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

int main() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    int failures = 0;
    const auto check = [&](const char* name, const char* kind, std::size_t dim, double got, double expected,
                           double most) {
        if (!(std::fabs(got - expected) <= most)) {
            std::fprintf(stderr, "FAILED %s %s at %zu: %g, expected %g\n", name, kind, dim, got, expected);
            ++failures;
        }
    };
    for (std::size_t dim : {1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 256, 257, 768}) {
        constexpr std::size_t N = 7;  // one group of four and a rest
        std::vector<float> query(dim), vectors(N * dim), centre(dim);
        for (float& each : query) each = normal(random) / std::sqrt(static_cast<float>(dim));
        for (float& each : vectors) each = normal(random) / std::sqrt(static_cast<float>(dim));
        for (float& each : centre) each = normal(random) / std::sqrt(static_cast<float>(dim));
        for (auto storage : {uniecs::Storage::float32, uniecs::Storage::float16, uniecs::Storage::int8}) {
            const uniecs::Codec codec{storage, dim, centre.data()};
            std::vector<std::byte> stored(N * codec.bytes());
            std::vector<uniecs::Scale> scales(N);
            std::vector<float> decoded(N * dim), scores(N);
            std::vector<const std::byte*> codes(N);
            for (std::size_t i = 0; i < N; ++i) {
                codes[i] = stored.data() + i * codec.bytes();
                scales[i] = codec.encode(&vectors[i * dim], stored.data() + i * codec.bytes());
                codec.decode(codes[i], scales[i], &decoded[i * dim]);
                const float step = storage == uniecs::Storage::int8 ? scales[i].factor / 2 + 1e-7f : 1e-3f;
                for (std::size_t d = 0; d < dim; ++d)
                    check("codec", "error", dim, decoded[i * dim + d], vectors[i * dim + d],
                          storage == uniecs::Storage::float32 ? 0 : step);
            }
            uniecs::Query prepared(codec);
            prepared.set(query.data());
            uniecs::Reach reach;
            for (std::size_t i = 0; storage == uniecs::Storage::int8 && i < N; ++i) {
                const uniecs::Reach one = codec.reach(&vectors[i * dim], codes[i], scales[i]);
                reach = {std::max(reach.length, one.length), std::max(reach.error, one.error)};
            }
            prepared.score(codes.data(), scales.data(), N, scores.data());
            std::vector<std::int8_t> bytes(dim);
            for (std::size_t d = 0; d < dim; ++d) bytes[d] = static_cast<std::int8_t>(d * 37 % 255 - 127);
            for (std::size_t i = 0; i < N; ++i) {
                double expected = 0, apart = 0, exact = 0;  // apart: from the centre
                long sum = 0;
                for (std::size_t d = 0; d < dim; ++d) {
                    expected += static_cast<double>(query[d]) * decoded[i * dim + d];
                    exact += static_cast<double>(query[d]) * vectors[i * dim + d];
                    apart += static_cast<double>(query[d]) * (decoded[i * dim + d] - centre[d]);
                    if (storage == uniecs::Storage::int8)
                        sum += long{bytes[d]} * std::to_integer<long>(codes[i][d]);
                }
                check("in use", "score", dim, scores[i], expected,
                      storage == uniecs::Storage::int8 ? 0.05 : 1e-5);
                if (storage == uniecs::Storage::int8)
                    check("bound", "score", dim, scores[i], exact, prepared.error(query.data(), reach));
                check("alone", "score", dim, prepared.score(codes[i], scales[i]), scores[i], 0);
                for (const uniecs::Kernels& each : uniecs::supported_kernels()) {
                    float out[N];
                    std::int32_t sums[N];
                    if (storage == uniecs::Storage::float32) {
                        each.f32(query.data(), codes.data(), N, dim, out);
                        check(each.name, "float32", dim, out[i], expected, 1e-5);
                    } else if (storage == uniecs::Storage::float16) {
                        each.f16(query.data(), codes.data(), N, dim, out);
                        check(each.name, "float16", dim, out[i], apart, 1e-5);
                    } else {
                        each.i8(bytes.data(), codes.data(), N, dim, sums);
                        check(each.name, "int8", dim, sums[i], static_cast<double>(sum), 0);
                    }
                }
            }
        }
    }
    std::printf("%s, instructions in use: %s\n", failures ? "failed" : "passed",
                uniecs::instructions().c_str());
    return failures ? 1 : 0;
}
