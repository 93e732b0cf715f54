#include "resize.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "resize_kernels.hpp"
#include "resize_weights.hpp"

namespace uniecs {
namespace {

// The rows of a picture, and a copy of the last ones with room behind: kernels read a little past the end.
class Rows {
  public:
    Rows(const std::uint8_t* pixels, std::size_t row_bytes, int rows)
        : rows_(static_cast<std::size_t>(rows)) {
        const std::size_t copied = std::min(rows_, OVERREAD / row_bytes + 1), kept = rows_ - copied;
        tail_.assign(copied * row_bytes + OVERREAD, 0);
        std::memcpy(tail_.data(), pixels + kept * row_bytes, copied * row_bytes);
        starts_.reserve(rows_);
        for (std::size_t y = 0; y < kept; ++y) starts_.push_back(pixels + y * row_bytes);
        for (std::size_t y = 0; y < copied; ++y) starts_.push_back(tail_.data() + y * row_bytes);
    }

    const std::uint8_t* operator[](std::size_t y) const { return starts_[std::min(y, rows_ - 1)]; }

  private:
    std::size_t rows_;
    std::vector<std::uint8_t> tail_;
    std::vector<const std::uint8_t*> starts_;
};

// Calls `one(weights, begin)` for some outputs after others: a line of many millions of pixels has as many
// weights.
template <typename One>
void in_parts(int in, double length, int out, const ResizeKernels& kernels, One one) {
    constexpr double MOST = 1 << 20;
    const double each = 4 * std::max(length / out, 1.0);
    const int some = std::max(1, static_cast<int>(std::min<double>(out, MOST / each)));
    for (int begin = 0; begin < out; begin += some) {
        const int end = std::min(out, begin + some);
        one(kernels.pack(bicubic_weights(in, length, out, begin, end)), begin);
    }
}

std::vector<std::uint8_t> scaled_across(const std::uint8_t* pixels, Size size, double length, int width,
                                        const ResizeKernels& kernels) {
    const Rows rows(pixels, static_cast<std::size_t>(size.width) * 3, size.height);
    const auto height = static_cast<std::size_t>(size.height);
    std::vector<std::uint8_t> out(static_cast<std::size_t>(width) * 3 * height);
    in_parts(size.width, length, width, kernels, [&](const PackedWeights& weights, int begin) {
        for (std::size_t y = 0; y < height; y += ROWS) {
            const std::uint8_t* from[ROWS];
            std::uint8_t* to[ROWS];
            for (std::size_t i = 0; i < ROWS; ++i) {  // a last group that is not full does its last row again
                from[i] = rows[y + i];
                to[i] = out.data() + 3 * (std::min(y + i, height - 1) * width + begin);
            }
            kernels.across(weights, from, to);
        }
    });
    return out;
}

std::vector<std::uint8_t> scaled_down(const std::uint8_t* pixels, Size size, double length, int height,
                                      const ResizeKernels& kernels) {
    const std::size_t row_bytes = static_cast<std::size_t>(size.width) * 3;
    std::vector<std::uint8_t> out(row_bytes * static_cast<std::size_t>(height));
    std::vector<const std::uint8_t*> rows;
    for (int y = 0; y < size.height + TAPS - 1; ++y)  // weights of 0 stand for the rows below the last
        rows.push_back(pixels + std::min(y, size.height - 1) * row_bytes);
    in_parts(size.height, length, height, kernels, [&](const PackedWeights& weights, int begin) {
        for (std::size_t i = 0; i < weights.first.size(); ++i)
            kernels.down(weights, static_cast<int>(i), rows.data() + weights.first[i], row_bytes,
                         out.data() + (begin + i) * row_bytes);
    });
    return out;
}

void check(const PictureView& picture, Size to) {
    const Size ceiled{(picture.whole.width + picture.scale - 1) / std::max(picture.scale, 1),
                      (picture.whole.height + picture.scale - 1) / std::max(picture.scale, 1)};
    if (std::min({picture.size.width, picture.size.height, to.width, to.height, picture.scale}) < 1 ||
        !(ceiled == picture.size))
        throw std::invalid_argument("a picture of " + std::to_string(picture.size.width) + "x" +
                                    std::to_string(picture.size.height) + " cannot be scaled to " +
                                    std::to_string(to.width) + "x" + std::to_string(to.height));
}

const ResizeKernels& named(const std::string& name) {
    for (const ResizeKernels& each : resize_kernels())
        if (name.empty() || name == each.name) return each;
    throw std::invalid_argument("instructions '" + name + "' are not supported here");
}

}  // namespace

Size fitted(Size whole, const ImagePreprocessing& preprocessing) {
    const std::int64_t w = whole.width, h = whole.height;
    const std::int64_t width = preprocessing.width_px, height = preprocessing.height_px;
    if (w * height <= width * h)
        return {static_cast<int>(std::max<std::int64_t>(1, (2 * w * height + h) / (2 * h))),
                preprocessing.height_px};
    return {preprocessing.width_px,
            static_cast<int>(std::max<std::int64_t>(1, (2 * h * width + w) / (2 * w)))};
}

std::vector<std::string> supported_resize_kernels() {
    std::vector<std::string> names;
    for (const ResizeKernels& each : resize_kernels()) names.emplace_back(each.name);
    return names;
}

std::vector<std::uint8_t> resize(const PictureView& picture, Size to, const std::string& kernels) {
    check(picture, to);
    const ResizeKernels& chosen = named(kernels);
    Size size = picture.size;
    const std::uint8_t* pixels = picture.pixels;
    const auto part = [&](int whole) { return static_cast<double>(whole) / picture.scale; };
    std::vector<std::uint8_t> across, down;
    if (size.width != to.width) {
        across = scaled_across(pixels, size, part(picture.whole.width), to.width, chosen);
        pixels = across.data();
        size.width = to.width;
    }
    if (size.height != to.height) {
        down = scaled_down(pixels, size, part(picture.whole.height), to.height, chosen);
        return down;
    }
    if (pixels == across.data()) return across;
    return {pixels, pixels + static_cast<std::size_t>(size.width) * 3 * size.height};
}

void pixel_values(const PictureView& picture, const ImagePreprocessing& preprocessing, Span<float> out) {
    const int width = preprocessing.width_px, height = preprocessing.height_px;
    const std::size_t plane = static_cast<std::size_t>(std::max(width, 0)) * std::max(height, 0);
    if (plane < 1 || out.size() != 3 * plane)
        throw std::invalid_argument("pixel_values has " + std::to_string(out.size()) +
                                    " places; expected 3x" + std::to_string(height) + "x" +
                                    std::to_string(width));
    const Size size = fitted(picture.whole, preprocessing);
    std::vector<std::uint8_t> made;
    const std::uint8_t* pixels = picture.pixels;
    if (!(size == picture.size)) {
        made = resize(picture, size);
        pixels = made.data();
    } else {
        check(picture, size);
    }
    const NormalizeTable table = normalize_table(preprocessing);
    const int left = (width - size.width) / 2, top = (height - size.height) / 2;
    for (std::size_t channel = 0; channel < 3; ++channel) {
        const auto& values = table[channel];
        const float white = values[255];
        float* to = out.data() + channel * plane;
        to = std::fill_n(to, static_cast<std::size_t>(top) * width, white);
        for (int y = 0; y < size.height; ++y) {
            const std::uint8_t* from = pixels + static_cast<std::size_t>(y) * size.width * 3 + channel;
            to = std::fill_n(to, left, white);
            for (int x = 0; x < size.width; ++x) *to++ = values[from[3 * x]];
            to = std::fill_n(to, width - size.width - left, white);
        }
        std::fill_n(to, static_cast<std::size_t>(height - size.height - top) * width, white);
    }
}

}  // namespace uniecs
