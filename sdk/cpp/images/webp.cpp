// WebP by libwebp: the first frame on a clear canvas, as its decoder of animations, which Pillow calls for
// pictures of every kind, would lay it.
#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>

#include "formats.hpp"

namespace uniecs {
namespace {

std::optional<Bytes> chunk(const WebPDemuxer* demuxer, const char* name) {
    WebPChunkIterator found;
    std::optional<Bytes> made;
    if (WebPDemuxGetChunk(demuxer, name, 1, &found)) made.emplace(found.chunk.bytes, found.chunk.size);
    WebPDemuxReleaseChunkIterator(&found);
    return made;
}

Metadata metadata_of(const WebPDemuxer* demuxer) {
    Metadata made;
    if (const auto exif = chunk(demuxer, "EXIF"); exif && !exif->empty())
        made.exif.emplace(exif->begin(), exif->end());
    if (const auto xmp = chunk(demuxer, "XMP ")) made.xmp = xmp->text();
    return made;
}

// A frame to its place on a canvas of 3 or 4 channels.
bool decode_frame(const WebPIterator& frame, Canvas& canvas) {
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config)) return false;
    const std::size_t stride = static_cast<std::size_t>(canvas.size.width) * canvas.channels;
    const std::size_t start = frame.y_offset * stride + static_cast<std::size_t>(frame.x_offset) *
                                                            static_cast<std::size_t>(canvas.channels);
    config.output.colorspace = canvas.channels == 4 ? MODE_RGBA : MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = canvas.samples.data() + start;
    config.output.u.RGBA.stride = static_cast<int>(stride);
    config.output.u.RGBA.size = canvas.samples.size() - start;
    return WebPDecode(frame.fragment.bytes, frame.fragment.size, &config) == VP8_STATUS_OK;
}

}  // namespace

Decoded decode_webp(Bytes file) {
    const std::string_view kind = file.part(12, 4).text();
    if (kind != "VP8 " && kind != "VP8L" && kind != "VP8X") throw ImageError("it is damaged");
    const WebPData data{file.data(), file.size()};
    const std::unique_ptr<WebPDemuxer, decltype(&WebPDemuxDelete)> demuxer(WebPDemux(&data), WebPDemuxDelete);
    if (!demuxer) throw ImageError("it is damaged");
    const Size size = checked_size(WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH),
                                   WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT));
    const Metadata metadata = metadata_of(demuxer.get());
    WebPBitstreamFeatures features;
    const bool opaque =
        WebPGetFeatures(file.data(), file.size(), &features) == VP8_STATUS_OK && !features.has_alpha;
    Canvas canvas(size, opaque ? 3 : 4);
    WebPIterator frame;
    const bool whole = WebPDemuxGetFrame(demuxer.get(), 1, &frame) && decode_frame(frame, canvas);
    WebPDemuxReleaseIterator(&frame);
    if (!whole) throw ImageError("it is damaged");
    return {shown(std::move(canvas)), orientation(metadata)};
}

}  // namespace uniecs
