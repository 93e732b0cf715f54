// Pictures to `pixel_values`, bit for bit as sdk/uniecs/preprocess.py (docs/bundle-format.md, steps 2 to 5):
// Pillow's BICUBIC in two passes of fixed-point weights, centred on white, normalised.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "uniecs/graph.hpp"

namespace uniecs {

// What an image encoder takes: of a bundle's `preprocessing`.
struct ImagePreprocessing {
    int height_px = 0, width_px = 0;
    std::array<double, 3> mean{}, std{};
};

struct Size {
    int width = 0, height = 0;

    bool operator==(const Size& other) const { return width == other.width && height == other.height; }
};

// 8-bit RGB pixels in rows without gaps, that somebody else keeps. They show `whole` at 1/scale of its size,
// sides rounded up; scale is 1 unless a JPEG was decoded at a reduced size.
struct PictureView {
    const std::uint8_t* pixels = nullptr;
    Size size, whole;
    int scale = 1;
};

struct Picture {
    std::vector<std::uint8_t> pixels;
    Size size, whole;
    int scale = 1;

    PictureView view() const { return {pixels.data(), size, whole, scale}; }
};

// The size of a picture inside the letterbox: aspect ratio kept, rounded half up, a side at least 1 px.
Size fitted(Size whole, const ImagePreprocessing& preprocessing);

// One set of instructions that carries out both passes; all give the same bits.
struct ResizeKernels;
std::vector<std::string> supported_resize_kernels();  // what this CPU can run, the fastest first

// The picture scaled to `to`, horizontally first; a pass whose length does not change is left out. `kernels`
// names a supported set; the fastest if empty.
std::vector<std::uint8_t> resize(const PictureView& picture, Size to, const std::string& kernels = "");

// float32 (3, height_px, width_px), channels R, G, B; `out` has that many values. Throws
// std::invalid_argument for other lengths and for sizes below 1.
void pixel_values(const PictureView& picture, const ImagePreprocessing& preprocessing, Span<float> out);

}  // namespace uniecs
