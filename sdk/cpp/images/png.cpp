// PNG over zlib, chunk by chunk as Pillow reads it: what it checks, what it lets pass, and in what order.
#include <zlib.h>

#include <memory>
#include <set>

#include "formats.hpp"

namespace uniecs {
namespace {

constexpr std::size_t MAX_TEXT = std::size_t{1} << 20;    // bytes that one compressed chunk may become
constexpr std::size_t MAX_TEXTS = std::size_t{64} << 20;  // characters of all texts
constexpr std::size_t NONE = SIZE_MAX;
constexpr std::size_t BLOCK = 65536;  // what Pillow gives zlib at once

constexpr int FIRST_ROW[] = {0, 0, 4, 0, 2, 0, 1}, ROW_STEP[] = {8, 8, 8, 4, 4, 2, 2};
constexpr int FIRST_COLUMN[] = {0, 4, 0, 2, 0, 1, 0}, COLUMN_STEP[] = {8, 8, 4, 4, 2, 2, 1};

enum class Kind { none, grey, rgb, palette, grey_alpha, rgba };

// How samples lie in the file.
struct Layout {
    Kind kind = Kind::none;
    int depth = 0;  // bits of a sample

    int channels() const {
        return kind == Kind::rgba ? 4 : kind == Kind::rgb ? 3 : kind == Kind::grey_alpha ? 2 : 1;
    }
    int bits() const { return depth * channels(); }
    bool wide_grey() const { return kind == Kind::grey && depth == 16; }
    // Bytes of a pixel once unpacked: wide grey keeps both, as its clear value is one of 16 bits.
    int unpacked() const { return wide_grey() ? 2 : channels(); }
    std::size_t row_bytes(int width) const {
        return (static_cast<std::size_t>(bits()) * static_cast<std::size_t>(width) + 7) / 8;
    }
};

// Nothing for a combination that PNG does not know.
Layout layout_of(int depth, int colour) {
    const bool whole = depth == 8 || depth == 16, part = depth == 1 || depth == 2 || depth == 4;
    if (colour == 0 && (whole || part)) return {Kind::grey, depth};
    if (colour == 2 && whole) return {Kind::rgb, depth};
    if (colour == 3 && (depth == 8 || part)) return {Kind::palette, depth};
    if (colour == 4 && whole) return {Kind::grey_alpha, depth};
    if (colour == 6 && whole) return {Kind::rgba, depth};
    return {};
}

// `n` pixels to samples of 8 bits: the high byte of 16, and less than 8 bits of grey spread over 0 to 255.
// Wide grey stays as it is.
void unpack(const Layout& layout, const std::uint8_t* from, int n, std::uint8_t* to) {
    const int samples = n * layout.unpacked();
    if (layout.depth == 8 || layout.wide_grey()) {
        std::copy_n(from, samples, to);
    } else if (layout.depth == 16) {
        for (int i = 0; i < samples; ++i) to[i] = from[2 * i];
    } else {
        const int mask = (1 << layout.depth) - 1, spread = layout.kind == Kind::grey ? 255 / mask : 1;
        for (int i = 0; i < samples; ++i) {
            const int bit = i * layout.depth;
            to[i] =
                static_cast<std::uint8_t>((from[bit / 8] >> (8 - layout.depth - bit % 8) & mask) * spread);
        }
    }
}

std::uint8_t paeth(int left, int above, int corner) {
    const int by_left = std::abs(above - corner), by_above = std::abs(left - corner);
    const int by_corner = std::abs(left + above - 2 * corner);
    return static_cast<std::uint8_t>(by_left <= by_above && by_left <= by_corner ? left
                                     : by_above <= by_corner                     ? above
                                                                                 : corner);
}

// One line, its filter's number before it, from the line above; `step` is the bytes of a pixel, at least 1.
void unfilter(std::uint8_t* line, const std::uint8_t* above, std::size_t bytes, std::size_t step) {
    const int filter = *line++;
    ++above;
    const auto each = [&](auto predicted) {
        const std::size_t first = std::min(step, bytes);
        for (std::size_t i = 0; i < first; ++i)
            line[i] = static_cast<std::uint8_t>(line[i] + predicted(0, above[i], 0));
        for (std::size_t i = first; i < bytes; ++i)
            line[i] =
                static_cast<std::uint8_t>(line[i] + predicted(line[i - step], above[i], above[i - step]));
    };
    if (filter == 1) each([](int left, int, int) { return left; });
    if (filter == 2) each([](int, int up, int) { return up; });
    if (filter == 3) each([](int left, int up, int) { return (left + up) / 2; });
    if (filter == 4) each([](int left, int up, int corner) { return paeth(left, up, corner); });
    if (filter > 4) throw ImageError("it has an unknown filter");
}

class Inflater {
  public:
    Inflater() {
        if (inflateInit(&stream_) != Z_OK) throw std::bad_alloc();
    }
    ~Inflater() { inflateEnd(&stream_); }
    Inflater(const Inflater&) = delete;
    Inflater& operator=(const Inflater&) = delete;

    void feed(Bytes in) {
        stream_.next_in = const_cast<std::uint8_t*>(in.data());
        stream_.avail_in = static_cast<uInt>(in.size());
    }
    bool hungry() const { return stream_.avail_in == 0; }
    // Bytes written; `code` is zlib's.
    std::size_t into(std::uint8_t* out, std::size_t size, int flush, int& code) {
        stream_.next_out = out;
        stream_.avail_out = static_cast<uInt>(size);
        code = inflate(&stream_, flush);
        return size - stream_.avail_out;
    }

  private:
    z_stream stream_{};
};

// A compressed text; nothing where it is damaged. Throws if it is too long.
std::optional<std::string> inflated(Bytes in) {
    if (in.empty()) return std::string();
    Inflater inflater;
    inflater.feed(in);
    std::string made(MAX_TEXT, '\0');
    int code;
    made.resize(inflater.into(reinterpret_cast<std::uint8_t*>(made.data()), made.size(), Z_SYNC_FLUSH, code));
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) return std::nullopt;
    if (code != Z_STREAM_END && !inflater.hungry()) throw ImageError("it has too long a text");
    return made;
}

// Lines of an image or of an interlaced one's passes, to a canvas at an offset.
class Lines {
  public:
    Lines(const Layout& layout, Canvas& canvas, int left, int top, Size size, bool interlaced)
        : layout_(layout), canvas_(canvas), left_(left), top_(top), size_(size), interlaced_(interlaced) {
        const std::size_t most = layout.row_bytes(size.width) + 1;
        line_.resize(most);
        above_.resize(most);
        samples_.resize(static_cast<std::size_t>(size.width) * layout.unpacked());
    }

    // Bytes of the next line with its filter.
    std::size_t wanted() const { return layout_.row_bytes(columns()) + 1; }
    std::uint8_t* place() { return line_.data(); }
    bool done() const { return y_ >= size_.height; }

    // The line that lies at place().
    void take() {
        unfilter(line_.data(), above_.data(), wanted() - 1, static_cast<std::size_t>(layout_.bits() + 7) / 8);
        const auto channels = static_cast<std::size_t>(layout_.unpacked());
        if (!interlaced_) {
            unpack(layout_, line_.data() + 1, size_.width,
                   canvas_.row(top_ + y_) + static_cast<std::size_t>(left_) * channels);
            ++y_;
        } else {
            unpack(layout_, line_.data() + 1, columns(), samples_.data());
            std::uint8_t* row = canvas_.row(y_);  // Pillow puts an interlaced part at the corner, too
            for (int i = 0, x = FIRST_COLUMN[pass_]; i < columns(); ++i, x += COLUMN_STEP[pass_])
                std::copy_n(&samples_[i * channels], channels, row + x * channels);
            next_interlaced();
        }
        std::swap(line_, above_);
    }

  private:
    int columns() const {
        if (!interlaced_) return size_.width;
        return (size_.width - FIRST_COLUMN[pass_] + COLUMN_STEP[pass_] - 1) / COLUMN_STEP[pass_];
    }
    void next_interlaced() {
        y_ += ROW_STEP[pass_];
        while (y_ >= size_.height || columns() <= 0) {
            if (pass_ == 6) {
                y_ = size_.height;
                return;
            }
            y_ = FIRST_ROW[++pass_];
            std::fill(line_.begin(), line_.end(), std::uint8_t{0});  // it becomes the line above the first
        }
    }

    Layout layout_;
    Canvas& canvas_;
    int left_, top_;
    Size size_;
    bool interlaced_;
    int y_ = 0, pass_ = 0;
    std::vector<std::uint8_t> line_, above_, samples_;
};

struct Chunk {
    std::string_view name;
    std::size_t size = 0;
};

class Reader {
  public:
    explicit Reader(Bytes file) : cursor_(file, 8) {}

    Decoded decode() {
        read_to_pixels();
        if (layout_.kind == Kind::none) throw ImageError("it has no header that is known");
        const Size size = checked_size(width_, height_);
        if (!has_pixels_) throw ImageError("it has no pixels");
        const std::optional<std::vector<std::uint8_t>> palette = palette_;
        const Layout layout = layout_;
        const bool animated = frames_ && *frames_ + (default_image_ ? 1 : 0) > 1;
        if (palette && palette->size() * 8 / 24 > 256) throw ImageError("its palette is too long");
        Canvas canvas(size, layout.unpacked());
        read_pixels(canvas);
        read_rest(animated);
        return {colour(std::move(canvas), layout, palette), turn()};
    }

  private:
    struct Part {
        std::int64_t left = 0, top = 0, right = 0, bottom = 0;
    };

    Chunk next_chunk() {
        const Bytes head = cursor_.read(8);
        const Chunk chunk{head.part(4).text(), head.be32(0)};
        const auto is_word = [](char c) {
            return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
        };
        if (chunk.name.size() < 4 || !std::all_of(chunk.name.begin(), chunk.name.end(), is_word))
            throw ImageError("it has a broken chunk");
        return chunk;
    }

    void read_to_pixels() {
        for (;;) {
            const Chunk chunk = next_chunk();
            if (chunk.name == "IEND") return;
            if (chunk.name == "IDAT") return found_pixels(chunk.size);
            if (chunk.name == "fdAT") {
                check_sequence(chunk.size);
                return found_pixels(chunk.size - 4);
            }
            const Bytes data = cursor_.take(chunk.size);
            read_chunk(chunk.name, data);
            uLong sum = crc32(0, reinterpret_cast<const Bytef*>(chunk.name.data()), 4);
            for (Bytes rest = data; !rest.empty(); rest = rest.part(BLOCK)) {
                const Bytes block = rest.part(0, BLOCK);
                sum = crc32(sum, block.data(), static_cast<uInt>(block.size()));
            }
            const bool right = cursor_.take(4).be32(0) == sum;
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // a fuzzer does not find checksums
            if (!right) throw ImageError("it has a chunk with a wrong checksum");
#else
            static_cast<void>(right);
#endif
        }
    }

    void found_pixels(std::size_t size) {
        if (layout_.kind == Kind::none) throw ImageError("it has no header that is known");
        if (!part_ && frames_) default_image_ = true;
        pixels_part_ = part_ ? *part_ : Part{0, 0, width_, height_};
        pixel_bytes_ = size;
        has_pixels_ = true;
    }

    // The rest of the chunk that the cursor stands in, and those like it that follow.
    void read_pixels(Canvas& canvas) {
        const Part part = pixels_part_;
        if (part.right <= part.left || part.bottom <= part.top || part.right > canvas.size.width ||
            part.bottom > canvas.size.height)
            throw ImageError("its frame lies outside of it");
        Lines lines(layout_, canvas, static_cast<int>(part.left), static_cast<int>(part.top),
                    {static_cast<int>(part.right - part.left), static_cast<int>(part.bottom - part.top)},
                    interlaced_);
        Inflater inflater;
        std::size_t written = 0;
        for (;;) {
            const Bytes block = next_pixels();
            inflater.feed(block);
            while (!inflater.hungry()) {
                int code;
                written += inflater.into(lines.place() + written, lines.wanted() - written, Z_NO_FLUSH, code);
                if (code < 0) throw ImageError("its pixels are damaged");
                if (written < lines.wanted()) break;
                lines.take();
                written = 0;
                if (lines.done() || code == Z_STREAM_END) return;
            }
        }
    }

    Bytes next_pixels() {
        while (pixel_bytes_ == 0) {
            cursor_.read(4);  // the checksum, which Pillow does not check either
            const Chunk chunk = next_chunk();
            if (chunk.name == "fdAT") {
                check_sequence(chunk.size);
                pixel_bytes_ = chunk.size - 4;
            } else if (chunk.name == "IDAT" || chunk.name == "DDAT") {
                pixel_bytes_ = chunk.size;
            } else {
                throw ImageError("it is truncated");
            }
        }
        const std::size_t size = std::min(BLOCK, pixel_bytes_);
        pixel_bytes_ -= size;
        const Bytes found = cursor_.read(size);
        if (found.empty()) throw ImageError("it is truncated");
        return found;
    }

    // What follows the pixels may still say how they are held; a damaged or missing end does not matter.
    void read_rest(bool animated) {
        cursor_.read(pixel_bytes_);
        for (;;) {
            cursor_.read(4);
            Chunk chunk;
            try {
                chunk = next_chunk();
            } catch (const ImageError&) {
                return;
            }
            if (chunk.name == "IEND" || (chunk.name == "fcTL" && animated)) return;
            if (chunk.name == "fdAT") {
                check_sequence(chunk.size);
                chunk.size -= 4;
            }
            read_chunk(chunk.name, cursor_.take(chunk.size));
        }
    }

    void check_sequence(std::size_t size) {
        if (size < 4) throw ImageError("it has a short frame chunk");
        const std::uint32_t number = cursor_.take(4).be32(0);
        if (!sequence_ || std::int64_t{*sequence_} != std::int64_t{number} - 1)
            throw ImageError("it has frames out of order");
        sequence_ = number;
    }

    void read_chunk(std::string_view name, Bytes data) {
        constexpr std::pair<std::string_view, std::size_t> LEAST[] = {
            {"IHDR", 13}, {"gAMA", 4}, {"cHRM", 32}, {"sRGB", 1}, {"pHYs", 9}, {"acTL", 8}, {"fcTL", 26}};
        for (const auto& [each, size] : LEAST)
            if (name == each && data.size() < size)
                throw ImageError("it has a short " + std::string(name) + " chunk");
        if (name == "IHDR") read_header(data);
        if (name == "PLTE" && layout_.kind == Kind::palette) palette_.emplace(data.begin(), data.end());
        if (name == "tRNS") read_transparency(data);
        if (name == "iCCP") read_profile(data);
        if (name == "tEXt" || name == "zTXt") read_text(data, name == "zTXt");
        if (name == "iTXt") read_international_text(data);
        if (name == "eXIf") metadata_.exif.emplace(data.begin(), data.end()), exif_is_text_ = false;
        if (name == "acTL") read_animation(data);
        if (name == "fcTL") read_frame(data);
    }

    void read_header(Bytes data) {
        width_ = data.be32(0);
        height_ = data.be32(4);
        if (const Layout found = layout_of(data[8], data[9]); found.kind != Kind::none) layout_ = found;
        if (data[12]) interlaced_ = true;
        if (data[11]) throw ImageError("it has an unknown filter");
    }

    void read_transparency(Bytes data) {
        if (layout_.kind == Kind::palette) {
            alphas_.emplace(data.begin(), data.end());
            transparent_text_ = false;
        } else if (layout_.kind == Kind::grey || layout_.kind == Kind::rgb) {
            const int values = layout_.kind == Kind::rgb ? 3 : 1;
            if (data.size() < static_cast<std::size_t>(2 * values))
                throw ImageError("it has a short tRNS chunk");
            std::array<std::uint16_t, 3> colour{};
            for (int i = 0; i < values; ++i) colour[i] = data.be16(static_cast<std::size_t>(2 * i));
            transparent_ = colour;
            transparent_text_ = false;
        }
    }

    void read_profile(Bytes data) {
        const std::size_t found = data.text().find('\0');
        const std::size_t method = found == std::string_view::npos ? 0 : found + 1;
        if (data[method]) throw ImageError("it has an unknown compression");
        inflated(data.part(method + 1));
    }

    void read_text(Bytes data, bool compressed) {
        const std::string_view text = data.text();
        const std::size_t end = std::min(text.find('\0'), text.size());
        const Bytes value = data.part(end + 1);
        if (!compressed) return found_text(text.substr(0, end), value.text(), true);
        if (!value.empty() && value[0]) throw ImageError("it has an unknown compression");
        found_text(text.substr(0, end), inflated(value.part(1)).value_or(""), false);
    }

    void read_international_text(Bytes data) {
        const std::string_view text = data.text();
        const std::size_t key = text.find('\0');
        if (key == text.npos || text.size() < key + 3) return;
        const std::size_t language = text.find('\0', key + 3);
        const std::size_t translated = language == text.npos ? text.npos : text.find('\0', language + 1);
        if (translated == text.npos) return;
        std::string value(text.substr(translated + 1));
        if (text[key + 1]) {
            if (text[key + 2]) return;
            const auto found = inflated(data.part(translated + 1));
            if (!found) return;
            value = *found;
        }
        found_text(text.substr(0, key), value, false);
    }

    // Pillow keeps texts by their key beside what it knows of the picture, where some change its meaning.
    void found_text(std::string_view key, std::string_view value, bool plain) {
        if (key.empty()) return;
        text_ += value.size();
        if (text_ > MAX_TEXTS) throw ImageError("it has too many texts");
        if (key == "XML:com.adobe.xmp") metadata_.xmp = value;
        if (key == "exif") {
            metadata_.exif.emplace(value.begin(), value.end());
            exif_is_text_ = !plain;
        }
        if (key == "Raw profile type exif") raw_exif_ = value;
        if (key == "transparency") transparent_text_ = true;
    }

    void read_animation(Bytes data) {
        if (frames_) {
            frames_.reset();
            return;
        }
        const std::uint32_t frames = data.be32(0);
        if (frames != 0 && frames <= 0x80000000u) frames_ = frames;
    }

    void read_frame(Bytes data) {
        const std::uint32_t number = data.be32(0);
        if (sequence_ ? std::int64_t{*sequence_} != std::int64_t{number} - 1 : number != 0)
            throw ImageError("it has frames out of order");
        sequence_ = number;
        const std::int64_t width = data.be32(4), height = data.be32(8), left = data.be32(12),
                           top = data.be32(16);
        if (left + width > width_ || top + height > height_) throw ImageError("its frame lies outside of it");
        part_ = Part{left, top, left + width, top + height};
    }

    Picture colour(Canvas canvas, const Layout& layout,
                   const std::optional<std::vector<std::uint8_t>>& palette) const {
        if (layout.wide_grey()) {
            const bool has_clear = transparent_ && !transparent_text_;
            for (std::size_t i = 0; i < canvas.samples.size(); i += 2) {
                std::uint8_t* at = &canvas.samples[i];
                at[1] = has_clear && (at[0] << 8 | at[1]) == (*transparent_)[0] ? 0 : 255;
            }
            return shown(std::move(canvas));
        }
        if (transparent_text_ && layout.kind != Kind::grey_alpha && layout.kind != Kind::rgba)
            throw ImageError("its transparency is a text");
        if (layout.kind == Kind::palette) return shown(canvas, colours(palette));
        if (layout.kind == Kind::grey && transparent_) {
            Colours greys = grey_ramp();
            const std::uint16_t value = (*transparent_)[0];
            greys[layout.depth == 1 ? (value ? 255 : 0) : value & 255][3] = 0;
            return shown(canvas, greys);
        }
        if (layout.kind == Kind::rgb && transparent_) {
            const auto& wanted = *transparent_;
            std::uint8_t* at = canvas.samples.data();
            for (std::size_t i = 0; i < canvas.samples.size(); i += 3, at += 3)
                if (at[0] == (wanted[0] & 255) && at[1] == (wanted[1] & 255) && at[2] == (wanted[2] & 255))
                    at[0] = at[1] = at[2] = 255;
        }
        return shown(std::move(canvas));
    }

    Colours colours(const std::optional<std::vector<std::uint8_t>>& palette) const {
        if (!palette && !alphas_) throw ImageError("it has no palette");
        Colours made = black();
        for (std::size_t i = 0; palette && i < palette->size() / 3; ++i)
            std::copy_n(palette->begin() + static_cast<std::ptrdiff_t>(3 * i), 3, made[i].begin());
        if (!alphas_) return made;
        const std::size_t one = only_clear(*alphas_);
        const std::size_t size = alphas_->size();
        if (one != NONE ? one >= made.size() : size > made.size())
            throw ImageError("its palette is too short");
        if (one != NONE)
            made[one][3] = 0;
        else
            for (std::size_t i = 0; i < size; ++i) made[i][3] = (*alphas_)[i];
        return made;
    }

    // The one clear entry among opaque ones, which is kept as its index; a line feed at the end goes unseen.
    static std::size_t only_clear(const std::vector<std::uint8_t>& alphas) {
        const std::string_view text = Bytes(alphas.data(), alphas.size()).text();
        const std::size_t clear = text.find_first_not_of('\xff');
        if (clear == text.npos || text[clear] != '\0') return NONE;
        const std::string_view rest = text.substr(clear + 1);
        const std::size_t next = rest.find_first_not_of('\xff');
        return next == rest.npos || rest.substr(next) == "\n" ? clear : NONE;
    }

    int turn() {
        if (exif_is_text_) return 1;
        if (!metadata_.exif && raw_exif_) {
            metadata_.exif = from_hexadecimal(*raw_exif_);
            if (!metadata_.exif) return 1;
        }
        return orientation(metadata_);
    }

    // The lines after the third, as ImageMagick writes them; nothing if they are not hexadecimal.
    static std::optional<std::vector<std::uint8_t>> from_hexadecimal(std::string_view text) {
        for (int line = 0; line < 3; ++line)
            text = text.substr(std::min(text.find('\n'), text.size() - 1) + 1);
        std::vector<std::uint8_t> made;
        int half = -1;
        for (const char c : text) {
            const int value = c >= '0' && c <= '9'   ? c - '0'
                              : c >= 'a' && c <= 'f' ? c - 'a' + 10
                              : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                     : -1;
            if (value < 0 && c == '\n') continue;
            if (value < 0 && half < 0 && (c == ' ' || (c >= '\t' && c <= '\r'))) continue;
            if (value < 0) return std::nullopt;
            if (half >= 0) made.push_back(static_cast<std::uint8_t>(half << 4 | value));
            half = half >= 0 ? -1 : value;
        }
        if (half >= 0) return std::nullopt;
        return made;
    }

    Cursor cursor_;
    Layout layout_;
    std::uint32_t width_ = 0, height_ = 0;
    bool interlaced_ = false, has_pixels_ = false, default_image_ = false;
    bool exif_is_text_ = false, transparent_text_ = false;
    std::size_t pixel_bytes_ = 0, text_ = 0;
    std::optional<std::uint32_t> frames_, sequence_;
    std::optional<Part> part_;
    Part pixels_part_;
    std::optional<std::vector<std::uint8_t>> palette_, alphas_;
    std::optional<std::array<std::uint16_t, 3>> transparent_;
    std::optional<std::string> raw_exif_;
    Metadata metadata_;
};

}  // namespace

Decoded decode_png(Bytes file) { return Reader(file).decode(); }

}  // namespace uniecs
