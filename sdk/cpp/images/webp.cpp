// WebP by libwebp's decoder of animations, as Pillow calls it for pictures of every kind.
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
    const std::unique_ptr<WebPAnimDecoder, decltype(&WebPAnimDecoderDelete)> decoder(
        WebPAnimDecoderNew(&data, nullptr), WebPAnimDecoderDelete);
    std::uint8_t* pixels = nullptr;
    int milliseconds = 0;
    if (!decoder || !WebPAnimDecoderGetNext(decoder.get(), &pixels, &milliseconds))
        throw ImageError("it is damaged");
    Canvas canvas(size, 4);
    std::copy_n(pixels, canvas.samples.size(), canvas.samples.data());
    if (opaque)
        for (std::size_t i = 3; i < canvas.samples.size(); i += 4) canvas.samples[i] = 255;
    return {shown(std::move(canvas)), orientation(metadata)};
}

}  // namespace uniecs
