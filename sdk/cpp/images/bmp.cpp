// BMP as Pillow reads it: headers of all versions, 1 to 32 bits, masks, run lengths.
#include "formats.hpp"

namespace uniecs {
namespace {

enum Compression : std::uint32_t { RAW = 0, RLE8 = 1, RLE4 = 2, BITFIELDS = 3 };

// Where in a pixel's bytes R, G, B and A lie; A is -1 where there is none.
struct Places {
    int red, green, blue, alpha;
};

struct Masks {
    std::uint32_t red, green, blue, alpha;

    bool operator==(const Masks& o) const {
        return red == o.red && green == o.green && blue == o.blue && alpha == o.alpha;
    }
};

constexpr std::pair<Masks, Places> LAYOUTS[] = {
    {{0xFF0000, 0xFF00, 0xFF, 0}, {2, 1, 0, -1}},
    {{0xFF000000, 0xFF0000, 0xFF00, 0}, {3, 2, 1, -1}},
    {{0xFF000000, 0xFF00, 0xFF, 0}, {3, 1, 0, -1}},
    {{0xFF000000, 0xFF0000, 0xFF00, 0xFF}, {3, 2, 1, 0}},
    {{0xFF, 0xFF00, 0xFF0000, 0xFF000000}, {0, 1, 2, 3}},
    {{0xFF0000, 0xFF00, 0xFF, 0xFF000000}, {2, 1, 0, 3}},
    {{0xFF000000, 0xFF00, 0xFF, 0xFF0000}, {3, 1, 0, 2}},
    {{0, 0, 0, 0}, {2, 1, 0, 3}},
};

struct Header {
    Size size;
    int bits = 0;         // of a pixel, as the header says
    int sample_bits = 0;  // of an index or grey, as it is read: less than 8, or 8
    bool top_down = false, short_entries = false;
    std::uint32_t compression = RAW, colours = 0;
    Masks masks{};
    bool wide_green = false;  // 16 bits as 5, 6, 5
    Places places{2, 1, 0, -1};
    std::optional<Bytes> palette;  // none: greys, or no indices at all
    std::size_t start = 0;         // of the pixels
};

void read_masks(Cursor& cursor, Bytes head, Header& header) {
    Masks& masks = header.masks;
    if (head.size() < 48) {  // they follow the header
        masks.red = cursor.read(4).le32(0);
        masks.green = cursor.read(4).le32(0);
        masks.blue = cursor.read(4).le32(0);
        return;
    }
    masks = {head.le32(36), head.le32(40), head.le32(44), head.size() >= 52 ? head.le32(48) : 0};
}

void apply_masks(Header& header) {
    const Masks& masks = header.masks;
    const Masks coloured{masks.red, masks.green, masks.blue, 0};
    if (header.bits == 32) {
        for (const auto& [each, places] : LAYOUTS)
            if (each == masks) {
                header.places = places;
                return;
            }
    } else if (header.bits == 24 && coloured == Masks{0xFF0000, 0xFF00, 0xFF, 0}) {
        return;
    } else if (header.bits == 16) {
        header.wide_green = coloured == Masks{0xF800, 0x7E0, 0x1F, 0};
        if (header.wide_green || coloured == Masks{0x7C00, 0x3E0, 0x1F, 0}) return;
    }
    throw ImageError("it has bit fields of an unknown layout");
}

// A palette that says that index i is grey i (0 and 255 of two) is left out, and then the samples are read
// as greys of 8 bits, or of 1, whatever the header says.
void read_palette(Cursor& cursor, Header& header) {
    if (header.colours < 1 || header.colours > 65536) throw ImageError("it has a palette of unknown size");
    const std::size_t entry = header.short_entries ? 3 : 4;
    const Bytes palette = cursor.read(entry * header.colours);
    bool grey = true;
    for (std::size_t i = 0; grey && i < header.colours; ++i) {
        const Bytes colour = palette.part(i * entry, 3);
        const auto value = static_cast<std::uint8_t>(header.colours == 2 ? 255 * i : i);
        grey = colour.size() == 3 && colour[0] == value && colour[1] == value && colour[2] == value;
    }
    header.sample_bits = grey ? (header.colours <= 2 ? 1 : 8) : header.bits;
    if (grey) return;
    if (palette.size() / entry > 256) throw ImageError("it has a palette of unknown size");
    header.palette = palette;
}

Header read_header(Bytes file) {
    Header header;
    std::size_t start = file.le32(10);
    Cursor cursor(file, 14);
    const std::uint32_t size = cursor.read(4).le32(0);
    const Bytes head = cursor.take(size < 4 ? 0 : size - 4);
    std::uint64_t width, height;
    if (size == 12) {
        width = head.le16(0);
        height = head.le16(2);
        header.bits = head.le16(6);
        header.short_entries = true;
    } else if (size == 40 || size == 52 || size == 56 || size == 64 || size == 108 || size == 124) {
        header.top_down = head[7] == 0xFF;
        width = head.le32(0);
        height = header.top_down ? (std::uint64_t{1} << 32) - head.le32(4) : head.le32(4);
        header.bits = head.le16(10);
        header.compression = head.le32(12);
        header.colours = head.le32(28);
        if (header.compression == BITFIELDS) read_masks(cursor, head, header);
    } else {
        throw ImageError("it has a header of unknown size");
    }
    const bool indexed = header.bits == 1 || header.bits == 4 || header.bits == 8;
    if (!indexed && header.bits != 16 && header.bits != 24 && header.bits != 32)
        throw ImageError("it has " + std::to_string(header.bits) + " bits a pixel");
    if (!header.colours && indexed) header.colours = 1u << header.bits;
    if (start == 14 + std::size_t{size} && indexed)
        start += std::size_t{header.colours} * (header.short_entries ? 3 : 4);
    if (header.compression > BITFIELDS) throw ImageError("it has an unknown compression");
    if (header.compression == BITFIELDS) apply_masks(header);
    if (indexed) read_palette(cursor, header);
    header.start = start ? start : cursor.tell();
    header.size = checked_size(width, height);
    return header;
}

void unpack_indices(const Header& header, const std::uint8_t* from, std::uint8_t* to) {
    const int bits = header.sample_bits, mask = (1 << bits) - 1;
    const int spread = bits == 1 && !header.palette ? 255 : 1;
    for (int x = 0; x < header.size.width; ++x) {
        const std::size_t bit = static_cast<std::size_t>(x) * bits;
        to[x] = static_cast<std::uint8_t>((from[bit / 8] >> (8 - bits - bit % 8) & mask) * spread);
    }
}

void unpack_16(const Header& header, const std::uint8_t* from, std::uint8_t* to) {
    const int green = header.wide_green ? 63 : 31, red = header.wide_green ? 11 : 10;
    for (int x = 0; x < header.size.width; ++x, from += 2, to += 3) {
        const int pixel = from[0] | from[1] << 8;
        to[0] = static_cast<std::uint8_t>((pixel >> red & 31) * 255 / 31);
        to[1] = static_cast<std::uint8_t>((pixel >> 5 & green) * 255 / green);
        to[2] = static_cast<std::uint8_t>((pixel & 31) * 255 / 31);
    }
}

void unpack_bytes(const Header& header, const std::uint8_t* from, std::uint8_t* to) {
    const Places& at = header.places;
    for (int x = 0; x < header.size.width; ++x, from += header.bits / 8) {
        *to++ = from[at.red];
        *to++ = from[at.green];
        *to++ = from[at.blue];
        if (at.alpha >= 0) *to++ = from[at.alpha];
    }
}

Canvas read_raw(Bytes file, const Header& header) {
    const auto width = static_cast<std::size_t>(header.size.width);
    const std::size_t read_bits = header.sample_bits ? header.sample_bits : header.bits;
    const std::size_t bytes = (width * read_bits + 7) / 8;
    const std::size_t stride = (width * header.bits + 31) / 8 / 4 * 4;
    if (stride < bytes) throw ImageError("it has greys of too few bits");
    Canvas canvas(header.size, header.sample_bits ? 1 : header.places.alpha < 0 ? 3 : 4);
    Cursor cursor(file, header.start);
    for (int y = 0; y < header.size.height; ++y) {
        const std::uint8_t* from = cursor.take(bytes).data();
        if (y + 1 < header.size.height) cursor.take(stride - bytes);
        std::uint8_t* to = canvas.row(header.top_down ? y : header.size.height - 1 - y);
        if (header.sample_bits)
            unpack_indices(header, from, to);
        else if (header.bits == 16)
            unpack_16(header, from, to);
        else
            unpack_bytes(header, from, to);
    }
    return canvas;
}

// Runs of indices, one byte each, until the picture is full or they end.
std::vector<std::uint8_t> read_runs(Bytes file, const Header& header) {
    const auto width = static_cast<std::size_t>(header.size.width);
    const std::size_t whole = width * static_cast<std::size_t>(header.size.height);
    const bool nibbles = header.compression == RLE4;
    Cursor cursor(file, header.start);
    std::vector<std::uint8_t> made;
    const auto pixel = [&](Bytes from, std::size_t i) {
        if (!nibbles) return from[i];
        return static_cast<std::uint8_t>(i % 2 ? from[i / 2] & 15 : from[i / 2] >> 4);
    };
    for (std::size_t x = 0; made.size() < whole;) {
        const Bytes pair = cursor.read(2);
        if (pair.size() < 2) break;
        if (pair[0]) {  // a run
            const std::size_t count = std::min<std::size_t>(pair[0], width > x ? width - x : 0);
            for (std::size_t i = 0; i < count; ++i)
                made.push_back(nibbles ? pixel(pair.part(1), i % 2) : pair[1]);
            x += count;
        } else if (pair[1] == 0) {  // the end of a line
            made.resize((made.size() + width - 1) / width * width);
            x = 0;
        } else if (pair[1] == 1) {  // of the picture
            break;
        } else if (pair[1] == 2) {  // a step to the right and up
            const Bytes step = cursor.read(2);
            if (step.size() < 2) break;
            made.resize(made.size() + std::min(whole - made.size(), step[0] + step[1] * width));
            x = made.size() % width;
        } else {  // as they are, to an even place
            const std::size_t count = std::min<std::size_t>(whole - made.size(), pair[1]);
            const std::size_t bytes = nibbles ? (count + 1) / 2 : count;
            const Bytes found = cursor.read(bytes);
            for (std::size_t i = 0; i < std::min(count, found.size() * (nibbles ? 2 : 1)); ++i)
                made.push_back(pixel(found, i));
            if (found.size() < bytes || made.size() == whole) break;
            x += pair[1];
            cursor.seek(cursor.tell() + cursor.tell() % 2);
        }
    }
    return made;
}

Canvas read_run_lengths(Bytes file, const Header& header) {
    if (!header.sample_bits) throw ImageError("it has run lengths without a palette");
    const std::vector<std::uint8_t> made = read_runs(file, header);
    Canvas canvas(header.size, 1);
    if (made.size() < canvas.samples.size()) throw ImageError("it is truncated");
    const bool is_black_and_white = header.sample_bits == 1 && !header.palette;
    const auto width = static_cast<std::size_t>(header.size.width);
    for (int y = 0; y < header.size.height; ++y) {
        std::uint8_t* to = canvas.row(header.top_down ? y : header.size.height - 1 - y);
        for (std::size_t x = 0; x < width; ++x) {
            const std::uint8_t value = made[static_cast<std::size_t>(y) * width + x];
            to[x] = is_black_and_white && value ? 255 : value;
        }
    }
    return canvas;
}

Colours colours_of(const Header& header) {
    if (!header.palette) return grey_ramp();
    Colours made = black();
    const std::size_t entry = header.short_entries ? 3 : 4;
    for (std::size_t i = 0; i < header.palette->size() / entry; ++i) {
        const Bytes colour = header.palette->part(i * entry, 3);
        made[i] = {colour[2], colour[1], colour[0], 255};
    }
    return made;
}

}  // namespace

Decoded decode_bmp(Bytes file) {
    const Header header = read_header(file);
    const bool runs = header.compression == RLE8 || header.compression == RLE4;
    Canvas canvas = runs ? read_run_lengths(file, header) : read_raw(file, header);
    if (canvas.channels != 1) return {shown(std::move(canvas)), 1};
    return {shown(canvas, colours_of(header)), 1};
}

}  // namespace uniecs
