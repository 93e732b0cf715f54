// Every set of instructions against sums taken one by one, on random sizes, and shown to notice one weight
// that is off.
#include "../src/resize.hpp"

#include <algorithm>
#include <cstdio>
#include <random>

#include "../src/resize_kernels.hpp"

namespace {

using Pixels = std::vector<std::uint8_t>;

std::mt19937 random_bits(5);

int drawn(int least, int most) { return std::uniform_int_distribution<int>(least, most)(random_bits); }

Pixels picture(int width, int height) {
    Pixels made(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
    const bool extreme = drawn(0, 1) == 1;  // black and white make the sums leave 0 to 255
    for (auto& each : made) each = static_cast<std::uint8_t>(extreme ? 255 * drawn(0, 1) : drawn(0, 255));
    return made;
}

std::uint8_t rounded(std::int64_t sum) {
    return static_cast<std::uint8_t>(
        std::clamp<std::int64_t>((sum + (1 << 21)) >> uniecs::WEIGHT_BITS, 0, 255));
}

// One pass over lines that lie `line` bytes apart, of samples that lie `step` bytes apart.
Pixels pass(const Pixels& from, const uniecs::Weights& weights, int lines, int line, int step, int out_line,
            int out_step, std::size_t size) {
    Pixels made(size);
    for (int y = 0; y < lines; ++y)
        for (int i = 0; i < weights.outputs(); ++i) {
            std::int64_t sum = 0;
            for (int tap = 0; tap < weights.count[i]; ++tap)
                sum += std::int64_t{weights.values[i * weights.taps + tap]} *
                       from[y * line + (weights.first[i] + tap) * step];
            made[y * out_line + i * out_step] = rounded(sum);
        }
    return made;
}

Pixels reference(const Pixels& from, uniecs::Size size, uniecs::Size whole, int scale, uniecs::Size to) {
    Pixels across = from;
    if (size.width != to.width) {
        const auto weights = uniecs::bicubic_weights(size.width, static_cast<double>(whole.width) / scale,
                                                     to.width, 0, to.width);
        across.assign(static_cast<std::size_t>(to.width * size.height * 3), 0);
        for (int channel = 0; channel < 3; ++channel) {
            const Pixels some(from.begin() + channel, from.end());
            const Pixels part =
                pass(some, weights, size.height, size.width * 3, 3, to.width * 3, 3, across.size());
            for (std::size_t i = 0; i < across.size(); i += 3) across[i + channel] = part[i];
        }
    }
    if (size.height == to.height) return across;
    const auto weights = uniecs::bicubic_weights(size.height, static_cast<double>(whole.height) / scale,
                                                 to.height, 0, to.height);
    const int row = to.width * 3;
    return pass(across, weights, row, 1, row, 1, row, static_cast<std::size_t>(row * to.height));
}

// What the kernels make of lines of random samples with one weight raised by `error` of its 2^22.
Pixels scaled(const uniecs::ResizeKernels& kernels, const Pixels& from, int width, int out, int error) {
    uniecs::Weights weights = uniecs::bicubic_weights(width, width, out, 0, out);
    weights.values[static_cast<std::size_t>((out / 2) * weights.taps + weights.count[out / 2] / 2)] += error;
    Pixels padded = from, made(static_cast<std::size_t>(out) * 3);
    padded.resize(from.size() + uniecs::OVERREAD);
    const std::uint8_t* rows[uniecs::ROWS];
    std::uint8_t* places[uniecs::ROWS];
    std::fill_n(rows, uniecs::ROWS, padded.data());
    std::fill_n(places, uniecs::ROWS, made.data());
    kernels.across(kernels.pack(weights), rows, places);
    return made;
}

}  // namespace

int main() {
    int failures = 0;
    const auto check = [&](bool right, const std::string& what) {
        if (right) return;
        std::fprintf(stderr, "FAILED %s\n", what.c_str());
        ++failures;
    };
    for (int round = 0; round < 400; ++round) {
        const int most = round % 3 ? 90 : 12;
        const int scale = 1 << drawn(0, round % 4 ? 0 : 3);
        const uniecs::Size whole{drawn(1, most * scale), drawn(1, most * scale)},
            to{drawn(1, 90), drawn(1, 90)};
        const uniecs::Size size{(whole.width + scale - 1) / scale, (whole.height + scale - 1) / scale};
        const Pixels pixels = picture(size.width, size.height);
        const Pixels expected = reference(pixels, size, whole, scale, to);
        for (const std::string& name : uniecs::supported_resize_kernels())
            check(uniecs::resize({pixels.data(), size, whole, scale}, to, name) == expected,
                  name + " " + std::to_string(size.width) + "x" + std::to_string(size.height) + " to " +
                      std::to_string(to.width) + "x" + std::to_string(to.height));
    }
    for (const uniecs::ResizeKernels& kernels : uniecs::resize_kernels()) {
        const Pixels pixels(300, 200);
        const Pixels right = scaled(kernels, pixels, 100, 37, 0);
        check(right == Pixels(111, 200), std::string(kernels.name) + ": a plain line changes");
        check(right != scaled(kernels, pixels, 100, 37, 1 << 16),
              std::string(kernels.name) + ": a wrong weight goes unseen");
    }
    std::printf("%s, %zu sets of instructions\n", failures ? "failed" : "passed",
                uniecs::supported_resize_kernels().size());
    return failures ? 1 : 0;
}
