#include "decode.hpp"

#include <new>

#include "formats.hpp"

namespace uniecs {
namespace {

constexpr const char* KINDS = "JPEG, PNG, WebP, GIF or BMP";

enum class Kind { jpeg, png, webp, gif, bmp };

Kind kind_of(Bytes file) {
    if (file.starts_with("\xff\xd8\xff")) return Kind::jpeg;
    if (file.starts_with("\x89PNG\r\n\x1a\n")) return Kind::png;
    if (file.starts_with("RIFF") && file.part(8, 4).text() == "WEBP") return Kind::webp;
    if (file.starts_with("GIF87a") || file.starts_with("GIF89a")) return Kind::gif;
    if (file.starts_with("BM")) return Kind::bmp;
    std::string name = "it is not an image of a known kind";
    if (file.starts_with({"II\x2a\0", 4}) || file.starts_with({"MM\0\x2a", 4})) name = "it is a TIFF file";
    if (file.part(4, 8).text() == "ftypavif") name = "it is an AVIF file";
    throw ImageError(name + "; expected " + KINDS);
}

Decoded decode_any(Bytes file, const ImagePreprocessing* preprocessing) {
    switch (kind_of(file)) {
        case Kind::jpeg:
            return decode_jpeg(file, preprocessing);
        case Kind::png:
            return decode_png(file);
        case Kind::webp:
            return decode_webp(file);
        case Kind::gif:
            return decode_gif(file);
        default:
            return decode_bmp(file);
    }
}

// The picture turned as it is to be shown: each output pixel (x, y) is the input pixel at
// start + x * across + y * down.
Picture turned(Picture picture, int orientation) {
    if (orientation == 1) return picture;
    const auto flip = [](Size size) { return Size{size.height, size.width}; };
    const bool swapped = orientation >= 5;
    const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const std::ptrdiff_t width = picture.size.width, height = picture.size.height;
    const std::ptrdiff_t right = from_right ? -3 : 3, below = (from_below ? -3 : 3) * width;
    const std::ptrdiff_t across = swapped ? below : right, down = swapped ? right : below;
    const std::uint8_t* start = picture.pixels.data() + (from_right ? 3 * (width - 1) : 0) +
                                (from_below ? 3 * width * (height - 1) : 0);
    Picture made;
    made.size = swapped ? flip(picture.size) : picture.size;
    made.whole = swapped ? flip(picture.whole) : picture.whole;
    made.scale = picture.scale;
    made.pixels.resize(picture.pixels.size());
    std::uint8_t* to = made.pixels.data();
    for (int y = 0; y < made.size.height; ++y)
        for (int x = 0; x < made.size.width; ++x, to += 3) std::memcpy(to, start + x * across + y * down, 3);
    return made;
}

}  // namespace

Size checked_size(std::uint64_t width, std::uint64_t height) {
    constexpr auto MOST = static_cast<std::uint64_t>(MAX_IMAGE_PIXELS);
    const std::string named = std::to_string(width) + "x" + std::to_string(height) + " pixels";
    if (width < 1 || height < 1) throw ImageError("it has " + named + "; expected at least 1x1");
    if (width > MOST || height > MOST || width * height > MOST)
        throw ImageError("it has " + named + "; at most " + std::to_string(MOST) + " are accepted");
    return {static_cast<int>(width), static_cast<int>(height)};
}

void check_image_kind(Span<const std::uint8_t> start) { kind_of({start.data(), start.size()}); }

Picture decode_image(Span<const std::uint8_t> file, const ImagePreprocessing* preprocessing) {
    const std::string name = "image of " + std::to_string(file.size()) + " bytes cannot be decoded: ";
    try {
        Decoded decoded = decode_any({file.data(), file.size()}, preprocessing);
        return turned(std::move(decoded.picture), decoded.orientation);
    } catch (const ImageError& error) {
        throw ImageError(name + error.what());
    } catch (const std::bad_alloc&) {
        throw ImageError(name + "there is not enough memory");
    }
}

std::vector<float> image_pixel_values(Span<const std::uint8_t> file,
                                      const ImagePreprocessing& preprocessing) {
    const Picture picture = decode_image(file, &preprocessing);
    std::vector<float> values(3 * static_cast<std::size_t>(preprocessing.height_px) *
                              static_cast<std::size_t>(preprocessing.width_px));
    pixel_values(picture.view(), preprocessing, values);
    return values;
}

}  // namespace uniecs
