// JPEG by libjpeg-turbo, with the checks that Pillow makes on the markers before it.
#include <csetjmp>
#include <cstdio>

#include "formats.hpp"

extern "C" {
#include <jerror.h>
#include <jpeglib.h>
}

namespace uniecs {
namespace {

constexpr int REDUCTIONS[] = {8, 4, 2};
constexpr int SPARE = 2;  // a reduced picture has sides at least so many times as long as needed

struct Header {
    Size size;
    int layers = 0;
    Metadata metadata;
    std::optional<Bytes> first_profile;  // the least of the parts of an ICC profile
};

bool is_frame(int marker) {  // SOF0 to SOF15 without DHT, JPG and DAC; DHP
    return (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) ||
           marker == 0xDE;
}

bool has_segment(int marker) {
    return (marker >= 0xC0 && marker <= 0xCF && marker != 0xC8) || (marker >= 0xDA && marker <= 0xEF) ||
           marker == 0xFE;
}

void read_frame(Bytes segment, Header& header) {
    const int width = segment.be16(3), height = segment.be16(1);
    header.size = {width, height};
    if (segment[0] != 8) throw ImageError("it has " + std::to_string(segment[0]) + " bits a channel");
    header.layers = segment[5];
    if (header.layers != 1 && header.layers != 3 && header.layers != 4)
        throw ImageError("it has " + std::to_string(header.layers) + " channels");
    if (header.first_profile && header.first_profile->size() < 14)
        throw ImageError("it has a damaged colour profile");
    header.first_profile.reset();
    if (segment.size() % 3 != 0) throw ImageError("it has a damaged frame header");
}

void check_quantization(Bytes segment) {
    while (!segment.empty()) {
        const std::size_t size = 1 + 64 * (segment[0] / 16 ? 2 : 1);
        if (segment.size() < size) throw ImageError("it has a damaged quantization table");
        segment = segment.part(size);
    }
}

// Pillow steps through the resources; a name that lies beyond the end is its one error.
void check_photoshop(Bytes segment) {
    std::size_t at = 14;
    while (segment.part(at, 4).text() == "8BIM") {
        at += 4;
        if (segment.part(at).size() < 2) return;
        const bool is_resolution = segment.be16(at) == 0x03ED;
        at += 2;
        at += 1 + std::size_t{segment[at]};
        at += at & 1;
        if (segment.part(at).size() < 4) return;
        const std::size_t size = segment.be32(at);
        at += 4;
        if (is_resolution && segment.part(at, size).size() < 14) return;
        at += size;
        at += at & 1;
    }
}

void read_application(int marker, Bytes segment, Header& header) {
    constexpr std::string_view XMP("http://ns.adobe.com/xap/1.0/\0", 29);
    if (marker == 0xE0 && segment.starts_with("JFIF")) {
        segment.be16(5);
    } else if (marker == 0xE1 && segment.starts_with({"Exif\0\0", 6})) {
        auto& exif = header.metadata.exif;
        if (!exif) exif.emplace(segment.begin(), segment.begin() + 6);
        exif->insert(exif->end(), segment.begin() + 6, segment.end());
    } else if (marker == 0xE1 && segment.starts_with(XMP)) {
        header.metadata.xmp = segment.part(XMP.size()).text();
    } else if (marker == 0xE2 && segment.starts_with({"ICC_PROFILE\0", 12})) {
        if (!header.first_profile || segment.text() < header.first_profile->text())
            header.first_profile = segment;
    } else if (marker == 0xED && segment.starts_with({"Photoshop 3.0\0", 14})) {
        check_photoshop(segment);
    } else if (marker == 0xEE && segment.starts_with("Adobe")) {
        segment.be16(5);
    }
}

void read_segment(int marker, Bytes segment, Header& header) {
    if (is_frame(marker)) read_frame(segment, header);
    if (marker == 0xDB) check_quantization(segment);
    if (marker >= 0xE0 && marker <= 0xEF) read_application(marker, segment, header);
}

// Everything before the first scan.
Header read_header(Bytes file) {
    Header header;
    Cursor cursor(file, 3);
    for (bool prefixed = true;;) {
        Bytes next = cursor.read(1);
        if (next.empty()) throw ImageError("it has no picture");
        if (!prefixed) {
            prefixed = next[0] == 0xFF;
            continue;
        }
        const int marker = next[0];
        if (marker == 0xFF) continue;  // padding
        prefixed = false;
        if (marker == 0x00) continue;
        if (marker < 0xC0) throw ImageError("it has an unknown marker");
        if (!has_segment(marker)) continue;
        const int size = cursor.take(2).be16(0);
        read_segment(marker, cursor.take(static_cast<std::size_t>(std::max(size - 2, 0))), header);
        if (marker == 0xDA) break;
    }
    if (!header.layers) throw ImageError("it has no frame header");
    return header;
}

int reduction(Size shown, const ImagePreprocessing& preprocessing) {
    const Size needed = fitted(shown, preprocessing);
    for (const int scale : REDUCTIONS)
        if (shown.width / scale >= SPARE * std::int64_t{needed.width} &&
            shown.height / scale >= SPARE * std::int64_t{needed.height})
            return scale;
    return 1;
}

// What must outlive libjpeg's jump back.
struct Session {
    jpeg_error_mgr errors;  // first, so that libjpeg's pointer to it is one to this
    std::jmp_buf back;
    char message[JMSG_LENGTH_MAX];
    jpeg_source_mgr source;
    jpeg_decompress_struct decoder;
};

extern "C" {
void fail(j_common_ptr decoder) {
    auto* session = reinterpret_cast<Session*>(decoder->err);
    session->errors.format_message(decoder, session->message);
    std::longjmp(session->back, 1);
}
void ignore(j_common_ptr) {}
void ignore_source(j_decompress_ptr) {}
boolean at_end(j_decompress_ptr) { return FALSE; }  // no more: libjpeg suspends
void skip(j_decompress_ptr decoder, long bytes) {
    const std::size_t left = decoder->src->bytes_in_buffer;
    const std::size_t skipped = bytes < 0 ? 0 : std::min(left, static_cast<std::size_t>(bytes));
    decoder->src->next_input_byte += skipped;
    decoder->src->bytes_in_buffer -= skipped;
}
}

void start(Session& session, Bytes file) {
    session.decoder.err = jpeg_std_error(&session.errors);
    session.errors.error_exit = fail;
    session.errors.output_message = ignore;
    session.source.next_input_byte = file.data();
    session.source.bytes_in_buffer = file.size();
    session.source.init_source = session.source.term_source = ignore_source;
    session.source.fill_input_buffer = at_end;
    session.source.skip_input_data = skip;
    session.source.resync_to_restart = jpeg_resync_to_restart;
    std::snprintf(session.message, sizeof session.message, "it is truncated");
}

bool read_rows(jpeg_decompress_struct& decoder, int scale, Canvas& canvas) {
    int found;
    do found = jpeg_read_header(&decoder, FALSE);
    while (found == JPEG_HEADER_TABLES_ONLY);
    if (found != JPEG_HEADER_OK) return false;
    decoder.out_color_space = canvas.channels == 1   ? JCS_GRAYSCALE
                              : canvas.channels == 3 ? JCS_RGB
                                                     : JCS_CMYK;
    decoder.scale_num = 1;
    decoder.scale_denom = static_cast<unsigned>(scale);
    if (!jpeg_start_decompress(&decoder)) return false;
    if (decoder.output_width != static_cast<unsigned>(canvas.size.width) ||
        decoder.output_components != canvas.channels)
        ERREXIT(&decoder, JERR_BAD_STATE);
    for (int y = 0; y < canvas.size.height; ++y) {
        JSAMPROW row = canvas.row(y);
        if (jpeg_read_scanlines(&decoder, &row, 1) != 1) return false;
    }
    jpeg_finish_decompress(&decoder);  // an end that is missing does not matter, a damaged one does
    return true;
}

// Fills a canvas of the size and channels that are expected. False: session.message says why. Nothing from
// here to libjpeg's jump has a destructor, so that it is defined.
bool decode_rows(Session& session, Bytes file, int scale, Canvas& canvas) {
    start(session, file);
    if (setjmp(session.back)) {
        jpeg_destroy_decompress(&session.decoder);
        return false;
    }
    jpeg_create_decompress(&session.decoder);
    session.decoder.src = &session.source;
    const bool whole = read_rows(session.decoder, scale, canvas);
    jpeg_destroy_decompress(&session.decoder);
    return whole;
}

// Inverted CMYK, as Adobe writes it, to RGB in place: each channel is K minus what its ink takes of K.
Picture shown_cmyk(Canvas canvas) {
    std::uint8_t* to = canvas.samples.data();
    for (std::size_t i = 0; i < canvas.samples.size(); i += 4) {
        const int black = canvas.samples[i + 3];
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const int product = (255 - canvas.samples[i + channel]) * black + 128;
            *to++ = static_cast<std::uint8_t>(std::max(0, black - (((product >> 8) + product) >> 8)));
        }
    }
    canvas.samples.resize(canvas.samples.size() / 4 * 3);
    canvas.channels = 3;
    return shown(std::move(canvas));
}

}  // namespace

Decoded decode_jpeg(Bytes file, const ImagePreprocessing* preprocessing) {
    const Header header = read_header(file);
    const Size whole = checked_size(static_cast<std::uint64_t>(header.size.width),
                                    static_cast<std::uint64_t>(header.size.height));
    const int turn = orientation(header.metadata);
    const Size as_shown = turn >= 5 ? Size{whole.height, whole.width} : whole;
    const int scale = preprocessing ? reduction(as_shown, *preprocessing) : 1;
    Canvas canvas({(whole.width + scale - 1) / scale, (whole.height + scale - 1) / scale}, header.layers);
    Session session{};
    if (!decode_rows(session, file, scale, canvas)) throw ImageError(session.message);
    Picture picture = canvas.channels == 4 ? shown_cmyk(std::move(canvas)) : shown(std::move(canvas));
    picture.whole = whole;
    picture.scale = scale;
    return {std::move(picture), turn};
}

}  // namespace uniecs
