// The decoders of decode.cpp, one for each kind of file. All throw ImageError with the reason alone.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "../src/resize.hpp"
#include "bytes.hpp"

namespace uniecs {

// What a file tells of how its picture is held: as Pillow keeps it in `info`.
struct Metadata {
    std::optional<std::vector<std::uint8_t>> exif;
    std::string xmp;
};

// 1 to 8, from the EXIF block or, where that has no such tag, from XMP; 1 where the block cannot be read.
int orientation(const Metadata& metadata);

// Samples of 8 bits: grey or index (1), grey and alpha (2), RGB (3), RGBA (4).
struct Canvas {
    Canvas(Size size, int channels, std::uint8_t value = 0)
        : size(size),
          channels(channels),
          samples(static_cast<std::size_t>(size.width) * size.height * channels, value) {}

    std::uint8_t* row(int y) { return samples.data() + static_cast<std::size_t>(y) * size.width * channels; }

    Size size;
    int channels;
    std::vector<std::uint8_t> samples;
};

using Rgba = std::array<std::uint8_t, 4>;
using Colours = std::array<Rgba, 256>;
Colours black();      // all black: what a palette says nothing of
Colours grey_ramp();  // value i is grey i

// The picture that samples stand for, alpha laid on white; of one channel through `colours`.
Picture shown(Canvas canvas);
Picture shown(const Canvas& canvas, const Colours& colours);

// Throws for a size of 0 or of more than MAX_IMAGE_PIXELS.
Size checked_size(std::uint64_t width, std::uint64_t height);

// A picture as its file holds it, and how to turn it.
struct Decoded {
    Picture picture;
    int orientation = 1;
};

Decoded decode_jpeg(Bytes file, const ImagePreprocessing* preprocessing);
Decoded decode_png(Bytes file);
Decoded decode_webp(Bytes file);
Decoded decode_gif(Bytes file);
Decoded decode_bmp(Bytes file);

}  // namespace uniecs
