// The orientation of a picture, by the rules of Pillow's `Image.getexif`.
#include <cmath>
#include <set>

#include "formats.hpp"

namespace uniecs {
namespace {

constexpr std::uint16_t ORIENTATION = 0x0112;

struct Ifd {
    Bytes data;
    bool big_endian = false;

    std::uint16_t u16(Bytes at) const { return big_endian ? at.be16(0) : at.le16(0); }
    std::uint32_t u32(Bytes at) const { return big_endian ? at.be32(0) : at.le32(0); }
};

std::size_t bytes_of_type(std::uint16_t type) {
    constexpr std::uint8_t BYTES[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
    return type < sizeof BYTES ? BYTES[type] : 0;
}

// A tag's first value if it is a number, and otherwise 0, which is no orientation.
double number(const Ifd& ifd, std::uint16_t type, Bytes data) {
    const auto u64 = [&] {
        const std::uint64_t first = ifd.u32(data), second = ifd.u32(data.part(4));
        return ifd.big_endian ? first << 32 | second : second << 32 | first;
    };
    switch (type) {
        case 3:
            return ifd.u16(data);
        case 4:
        case 13:
            return ifd.u32(data);
        case 5:
            return ifd.u32(data.part(4)) ? double{1} * ifd.u32(data) / ifd.u32(data.part(4)) : 0;
        case 6:
            return static_cast<std::int8_t>(data[0]);
        case 8:
            return static_cast<std::int16_t>(ifd.u16(data));
        case 9:
            return static_cast<std::int32_t>(ifd.u32(data));
        case 10: {
            const auto below = static_cast<std::int32_t>(ifd.u32(data.part(4)));
            return below ? double{1} * static_cast<std::int32_t>(ifd.u32(data)) / below : 0;
        }
        case 11: {
            const std::uint32_t bits = ifd.u32(data);
            float value;
            std::memcpy(&value, &bits, sizeof value);
            return value;
        }
        case 12: {
            const std::uint64_t bits = u64();
            double value;
            std::memcpy(&value, &bits, sizeof value);
            return value;
        }
        case 16:
            return static_cast<double>(u64());
        default:
            return 0;  // text or bytes
    }
}

// The tag of an EXIF block, if it has one: what can be read before the first damage counts. 1 where there is
// no TIFF header.
std::optional<double> orientation_tag(Bytes data) {
    for (int i = 0; i < 2 && data.starts_with({"Exif\0\0", 6}); ++i) data = data.part(6);
    if (data.empty()) return std::nullopt;
    bool known = false;
    for (const std::string_view prefix :
         {std::string_view("MM\0\x2a", 4), std::string_view("II\x2a\0", 4), std::string_view("MM\x2a\0", 4),
          std::string_view("II\0\x2a", 4), std::string_view("MM\0\x2b", 4)})
        known = known || data.starts_with(prefix);
    if (!known || data.size() < 8) return 1;
    const Ifd ifd{data, data[0] == 'M'};
    Cursor cursor(data, ifd.u32(data.part(4)));
    const Bytes count = cursor.read(2);
    if (count.size() < 2) return std::nullopt;
    std::uint64_t outside = 0;  // bytes of tags that lie elsewhere
    std::set<std::uint16_t> seen;
    for (int tags = ifd.u16(count); tags; --tags) {
        const Bytes entry = cursor.read(12);
        if (entry.size() < 12) return std::nullopt;
        const std::uint16_t tag = ifd.u16(entry), type = ifd.u16(entry.part(2));
        const std::uint64_t size = std::uint64_t{ifd.u32(entry.part(4))} * bytes_of_type(type);
        if (size == 0 || seen.count(tag)) continue;
        Bytes value = entry.part(8, size);
        if (size > 4) {
            outside += size;
            if (outside > data.size()) continue;
            value = data.part(ifd.u32(entry.part(8)), size);
            if (value.size() < size) return std::nullopt;  // and Pillow reads no further
        }
        if (tag == ORIENTATION) return number(ifd, type, value);
        seen.insert(tag);
    }
    return std::nullopt;
}

// tiff:Orientation="6" or <tiff:Orientation>6; 0 if there is none.
int orientation_of_xmp(std::string_view xmp) {
    constexpr std::string_view NAME = "tiff:Orientation";
    for (std::size_t at = xmp.find(NAME); at != xmp.npos; at = xmp.find(NAME, at + 1)) {
        std::string_view rest = xmp.substr(at + NAME.size());
        if (rest.substr(0, 2) == "=\"")
            rest.remove_prefix(2);
        else if (rest.substr(0, 1) == ">")
            rest.remove_prefix(1);
        else
            continue;
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
    }
    return 0;
}

}  // namespace

int orientation(const Metadata& metadata) {
    std::optional<double> tag;
    if (metadata.exif) tag = orientation_tag({metadata.exif->data(), metadata.exif->size()});
    const double value = tag ? *tag : orientation_of_xmp(metadata.xmp);
    return value >= 2 && value <= 8 && value == std::floor(value) ? static_cast<int>(value) : 1;
}

}  // namespace uniecs
