// Image files to pictures as sdk/uniecs/preprocess.py decodes them (docs/bundle-format.md, step 1): the same
// pixels, and an error where Python gives one. It needs libjpeg-turbo, zlib and libwebp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../src/resize.hpp"
#include "uniecs/errors.hpp"

namespace uniecs {

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // large pictures only cost time there
constexpr std::int64_t MAX_IMAGE_PIXELS = 500'000;
#else
constexpr std::int64_t MAX_IMAGE_PIXELS = 64'000'000;
#endif

// Throws ImageError unless a file that starts so is of a kind that decode_image takes.
constexpr std::size_t IMAGE_KIND_BYTES = 12;
void check_image_kind(Span<const std::uint8_t> start);

// A JPEG, PNG, WebP, GIF or BMP file to 8-bit RGB: EXIF orientation applied, alpha laid on white, the first
// frame of an animation. With `preprocessing`, a JPEG far larger than that needs at 1/2, 1/4 or 1/8 of its
// size. Throws ImageError for a file that is damaged, of another kind, or of more than MAX_IMAGE_PIXELS
// (seen from the header, before anything is decoded).
Picture decode_image(Span<const std::uint8_t> file, const ImagePreprocessing* preprocessing = nullptr);

// Decoded, scaled and normalised: float32 (3, height_px, width_px). Throws ImageError.
std::vector<float> image_pixel_values(Span<const std::uint8_t> file, const ImagePreprocessing& preprocessing);

}  // namespace uniecs
