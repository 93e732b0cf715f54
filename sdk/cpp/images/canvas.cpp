#include "formats.hpp"

namespace uniecs {
namespace {

// Pillow's alpha_composite over opaque white, with its seven extra bits and its division by 255.
std::uint8_t over_white(std::uint32_t value, std::uint32_t alpha) {
    const std::uint32_t sum = (value * alpha + 255 * (255 - alpha) + 128) << 7;
    return static_cast<std::uint8_t>((sum + (sum >> 8)) >> 15);
}

Picture empty_picture(Size size) {
    Picture made;
    made.size = made.whole = size;
    made.pixels.resize(static_cast<std::size_t>(size.width) * size.height * 3);
    return made;
}

}  // namespace

Colours black() {
    Colours made;
    made.fill({0, 0, 0, 255});
    return made;
}

Colours grey_ramp() {
    Colours made;
    for (std::size_t i = 0; i < made.size(); ++i) {
        const auto value = static_cast<std::uint8_t>(i);
        made[i] = {value, value, value, 255};
    }
    return made;
}

Picture shown(const Canvas& canvas, const Colours& colours) {
    std::array<std::array<std::uint8_t, 3>, 256> laid;
    for (std::size_t i = 0; i < 256; ++i)
        for (std::size_t channel = 0; channel < 3; ++channel)
            laid[i][channel] = over_white(colours[i][channel], colours[i][3]);
    Picture made = empty_picture(canvas.size);
    std::uint8_t* to = made.pixels.data();
    for (const std::uint8_t sample : canvas.samples)
        for (const std::uint8_t value : laid[sample]) *to++ = value;
    return made;
}

Picture shown(Canvas canvas) {
    if (canvas.channels == 1) return shown(canvas, grey_ramp());
    if (canvas.channels == 3) {
        Picture made;
        made.size = made.whole = canvas.size;
        made.pixels = std::move(canvas.samples);
        return made;
    }
    const auto channels = static_cast<std::size_t>(canvas.channels);
    const std::size_t green = channels == 4 ? 1 : 0, blue = 2 * green;
    Picture made = empty_picture(canvas.size);
    const std::uint8_t* from = canvas.samples.data();
    for (std::size_t i = 0; i < made.pixels.size(); i += 3, from += channels) {
        const std::uint8_t alpha = from[channels - 1];
        std::uint8_t* to = &made.pixels[i];
        to[0] = over_white(from[0], alpha);
        to[1] = over_white(from[green], alpha);
        to[2] = over_white(from[blue], alpha);
    }
    return made;
}

}  // namespace uniecs
