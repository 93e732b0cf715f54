"""Image files of every kind that the C++ decoder takes, generated: what Pillow writes, and what it only reads."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

Files = Iterator[tuple[str, bytes]]
SIZES = ((1, 1), (1, 9), (9, 1), (2, 3), (7, 5), (16, 16), (17, 33), (31, 41), (64, 48), (61, 83), (300, 3), (3, 300))
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def pixels(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours with noise and sharp edges in them."""
    random = np.random.default_rng([seed, width, height, channels])
    coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, channels)).repeat(8, 0).repeat(8, 1)
    noisy = coarse[:height, :width] + random.normal(0, 12, (height, width, channels))
    return noisy.clip(0, 255).astype(np.uint8)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
    if mode in channels:
        return Image.frombytes(mode, (width, height), pixels(width, height, channels[mode], seed).tobytes())
    return picture(width, height, "RGB", seed).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int, endian: str = ">", kind: int = 3) -> bytes:
    """An EXIF block with an image description, stored outside of the directory, before the orientation."""
    head = (b"MM\0\x2a" if endian == ">" else b"II\x2a\0") + struct.pack(endian + "L", 8)
    value = struct.pack(endian + ("HH" if kind == 3 else "L"), *((orientation, 0) if kind == 3 else (orientation,)))
    entries = struct.pack(endian + "HHLL", 0x010E, 2, 12, 38)
    entries += struct.pack(endian + "HHL", 0x0112, kind, 1) + value
    return b"Exif\0\0" + head + struct.pack(endian + "H", 2) + entries + struct.pack(endian + "L", 0) + b"description\0"


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """A JPEG with a further segment right behind its start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def without_segment(jpeg: bytes, marker: int) -> bytes:
    at = jpeg.index(bytes((0xFF, marker)))
    return jpeg[:at] + jpeg[at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0] :]


def jpegs() -> Files:
    for width, height in (*SIZES, (160, 200), (247, 327), (480, 640), (700, 90)):
        for mode in ("L", "RGB", "CMYK"):
            yield f"jpeg {mode} {width}x{height}", saved(picture(width, height, mode), "JPEG")
        for subsampling in (0, 1):
            data = saved(picture(width, height), "JPEG", subsampling=subsampling, quality=95, progressive=True)
            yield f"jpeg progressive {subsampling} {width}x{height}", data
    for size in ((120, 160), (121, 163), (239, 320), (247, 331), (650, 487), (1999, 1501), (64, 900), (900, 64)):
        yield f"jpeg reduced {size}", saved(picture(*size), "JPEG", subsampling=2)
        yield f"jpeg reduced grey {size}", saved(picture(*size, "L"), "JPEG", progressive=True)
    for orientation in range(10):
        for endian in "<>":
            block = exif(orientation, endian, 3 if orientation % 2 else 4)
            yield f"jpeg exif {orientation}{endian}", saved(picture(61, 43), "JPEG", exif=block)
            yield f"jpeg exif reduced {orientation}{endian}", saved(picture(410, 203), "JPEG", exif=block)
        packet = XMP.format(orientation).encode()
        yield f"jpeg xmp {orientation}", saved(picture(61, 43), "JPEG", xmp=packet)
    plain = saved(picture(61, 43), "JPEG")
    cmyk = saved(picture(61, 43, "CMYK"), "JPEG")
    yield "jpeg both exif and xmp", saved(picture(61, 43), "JPEG", exif=exif(3), xmp=XMP.format(6).encode())
    yield "jpeg two exif segments", with_segment(with_segment(plain, 0xE1, exif(6)[30:]), 0xE1, exif(6)[:30])
    yield "jpeg split exif", with_segment(with_segment(plain, 0xE1, b"Exif\0\0" + exif(6)[30:]), 0xE1, exif(6)[:30])
    yield "jpeg empty exif", with_segment(plain, 0xE1, b"Exif\0\0")
    yield "jpeg adobe rgb", with_segment(without_segment(plain, 0xE0), 0xEE, b"Adobe\0\x64\0\0\0\0\0")
    yield "jpeg adobe ycc", with_segment(without_segment(plain, 0xE0), 0xEE, b"Adobe\0\x64\0\0\0\0\1")
    yield "jpeg without jfif", without_segment(plain, 0xE0)
    yield "jpeg rgb inside", saved(picture(61, 43), "JPEG", keep_rgb=True)
    yield "jpeg cmyk without adobe", without_segment(cmyk, 0xEE)
    at = cmyk.index(b"Adobe") + 11
    yield "jpeg ycck", cmyk[:at] + b"\2" + cmyk[at + 1 :]
    yield "jpeg comment, padding, trailer", with_segment(plain, 0xFE, b"words") + b"more"
    yield "jpeg padded marker", plain[:2] + b"\xff\xff\xff" + plain[2:]
    yield "jpeg without end", plain[:-2]
    yield "jpeg restarts", saved(picture(61, 43), "JPEG", restart_marker_rows=1)
    yield "jpeg optimized", saved(picture(61, 43), "JPEG", optimize=True, quality=3)
    yield "jpeg photoshop", with_segment(plain, 0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x02\0\0")
    first, second = (picture(247, 331, seed=seed) for seed in (1, 2))
    yield "mpo", saved(first, "MPO", save_all=True, append_images=[second])


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    *,
    before: tuple[tuple[bytes, bytes], ...] = (),
    after: tuple[tuple[bytes, bytes], ...] = (),
    interlaced: bool = False,
    parts: int = 1,
    raw: bytes | None = None,
    seed: int = 0,
) -> bytes:
    """Random samples under random filters, in `parts` IDAT chunks."""
    random = np.random.default_rng([seed, width, height, depth, colour])
    if raw is None:
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        passes = starts if interlaced else ((0, 0, 1, 1),)
        raw = b""
        for left, top, across, down in passes:
            columns, rows = -((left - width) // across), -((top - height) // down)
            for _ in range(rows if columns > 0 else 0):
                line = random.integers(0, 256, (columns * bits + 7) // 8, dtype=np.uint8)
                raw += bytes([random.integers(5)]) + (line // 9 if colour == 3 else line).tobytes()
    packed = zlib.compress(raw)
    cuts = np.linspace(0, len(packed), parts + 1).astype(int)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = ((b"IHDR", header), *before, *((b"IDAT", packed[a:b]) for a, b in itertools.pairwise(cuts)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in (*chunks, *after, (b"IEND", b"")))


PNG_KINDS = ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3))
PNG_KINDS += ((8, 4), (16, 4), (8, 6), (16, 6))
PALETTE = np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes()


def pngs() -> Files:
    for depth, colour in PNG_KINDS:
        before = ((b"PLTE", PALETTE),) if colour == 3 else ()
        for number, (width, height) in enumerate((*SIZES[:10], (130, 90))):
            interlaced = number % 2 == depth % 4 % 2
            data = png(width, height, depth, colour, before=before, interlaced=interlaced, parts=1 + number % 3)
            yield f"png {depth}/{colour} {width}x{height} {interlaced}", data
        clear = {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: b"\0\x80\xff\x40"}.get(colour)
        if clear:
            yield f"png {depth}/{colour} tRNS", png(19, 23, depth, colour, before=(*before, (b"tRNS", clear)))
    short = ((b"PLTE", PALETTE[:12]),)
    yield "png short palette", png(19, 23, 8, 3, before=short)
    yield "png one clear entry", png(19, 23, 8, 3, before=(*short, (b"tRNS", b"\xff\xff\0")))
    yield "png clear entry, line feed", png(19, 23, 8, 3, before=(*short, (b"tRNS", b"\xff\xff\0\n")))
    yield "png odd palette", png(19, 23, 8, 3, before=((b"PLTE", PALETTE[:13]),))
    yield "png long palette", png(19, 23, 8, 3, before=((b"PLTE", PALETTE + PALETTE),))
    yield "png long tRNS", png(19, 23, 8, 3, before=(*short, (b"tRNS", b"\x80" * 300)))
    yield "png no palette", png(19, 23, 8, 3)
    yield "png no palette, tRNS", png(19, 23, 8, 3, before=((b"tRNS", b"\x80" * 30),))
    plain = pixels(19, 23, 1).squeeze()
    lines = b"".join(b"\0" + row.tobytes() for row in plain)
    for name, value in (("low", int(plain[0, 0])), ("high byte", 256 + int(plain[0, 0])), ("absent", 5)):
        clear = struct.pack(">H", value)
        yield f"png grey tRNS {name}", png(19, 23, 8, 0, raw=lines, before=((b"tRNS", clear),))
        yield f"png grey tRNS {name} after", png(19, 23, 8, 0, raw=lines, after=((b"tRNS", clear),))
    wide = (plain.astype(np.uint16) * 257 ^ np.arange(19) % 2).astype(">u2")  # each grey with two low bytes
    lines_16 = b"".join(b"\0" + row.tobytes() for row in wide)
    for name, value in (("present", int(wide[0, 0])), ("high byte", int(wide[0, 0]) ^ 255), ("text", int(wide[0, 0]))):
        text = ((b"tEXt", b"transparency\0text"),) if name == "text" else ()
        for where in ("before", "after"):
            chunks = {where: ((b"tRNS", struct.pack(">H", value)), *text)}
            yield f"png wide grey tRNS {name} {where}", png(19, 23, 16, 0, raw=lines_16, **chunks)
    yield "png ends early in its stream", png(19, 23, 8, 0, raw=lines[:100])
    yield "png ends early between lines", png(19, 23, 8, 0, raw=lines[:200])
    yield "png unknown filter", png(19, 23, 8, 0, raw=b"\5" + lines[1:])
    yield "png two megabytes of text", png(9, 9, 8, 0, before=((b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 21))),))
    yield "png profile", png(9, 9, 8, 2, before=((b"iCCP", b"name\0\0" + zlib.compress(b"nothing")),))
    yield "png damaged profile", png(9, 9, 8, 2, before=((b"iCCP", b"name\0\0abc"),))
    yield "png profile of unknown method", png(9, 9, 8, 2, before=((b"iCCP", b"name\0\1abc"),))
    for name, size in (("gAMA", 4), ("cHRM", 32), ("sRGB", 1), ("pHYs", 9), ("tIME", 7), ("abCd", 5)):
        yield f"png {name}", png(9, 9, 8, 2, before=((name.encode(), bytes(size)),))
        yield f"png short {name}", png(9, 9, 8, 2, before=((name.encode(), bytes(size - 1)),))
        yield f"png short {name} after", png(9, 9, 8, 2, after=((name.encode(), bytes(size - 1)),))
    for orientation in range(1, 9):
        block = exif(orientation, "<")
        yield f"png eXIf {orientation}", png(19, 23, 8, 6, before=((b"eXIf", block[6:]),))
        yield f"png eXIf after {orientation}", png(19, 23, 16, 0, after=((b"eXIf", block[6:]),))
        text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
        yield (
            f"png raw profile {orientation}",
            png(19, 23, 8, 3, before=(*short, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))),
        )
        packet = XMP.format(orientation).encode()
        yield f"png xmp {orientation}", png(19, 23, 2, 0, before=((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),))
        yield (
            f"png compressed xmp {orientation}",
            png(19, 23, 8, 2, before=((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet)),)),
        )
    yield "png broken raw profile", png(9, 9, 8, 2, before=((b"tEXt", b"Raw profile type exif\0\n\n\n4x"),))
    yield "png text exif", png(9, 9, 8, 2, before=((b"tEXt", b"exif\0" + exif(6)),))
    yield "png international text exif", png(9, 9, 8, 2, before=((b"iTXt", b"exif\0\0\0\0\0text"),))
    yield "png text transparency", png(9, 9, 8, 2, before=((b"tEXt", b"transparency\0text"),))
    yield "png text transparency, alpha", png(9, 9, 8, 6, before=((b"tEXt", b"transparency\0text"),))
    frames = [picture(33, 21, "RGBA", seed) for seed in range(3)]
    yield "apng", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    default = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    yield "apng default image", default
    frame = struct.pack(">IIIIIHHBB", 0, 5, 6, 2, 3, 1, 10, 0, 0)
    animated = ((b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame))
    for name, interlaced in (("apng part", False), ("apng interlaced part", True)):
        whole = png(5, 6, 8, 2, before=animated, interlaced=interlaced)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 13, 8, 2, 0, 0, interlaced))
        yield name, whole[:8] + header + whole[8 + len(header) :]
    yield "apng part outside", png(5, 6, 8, 2, before=animated)
    yield "apng out of order", png(9, 9, 8, 2, before=((b"fcTL", b"\0\0\0\7" + frame[4:]),))
    data = saved(picture(9, 9), "PNG")
    yield "png no end", data[:-12]
    yield "png wrong checksum", data[:29] + b"oops" + data[33:]
    yield "png wrong checksum of pixels", data[:-16] + b"oops" + data[-12:]
    yield "png bomb", png(20_000, 20_000, 8, 2, raw=b"")
    yield "png no width", png(0, 9, 8, 2, raw=b"")
    yield "png unknown kind", png(9, 9, 8, 2)[:24] + b"\7" + png(9, 9, 8, 2)[25:]


def webps() -> Files:
    for width, height in (*SIZES, (200, 160)):
        for mode in ("RGB", "RGBA"):
            image = picture(width, height, mode)
            yield f"webp {mode} {width}x{height}", saved(image, "WEBP", quality=70)
            yield f"webp lossless {mode} {width}x{height}", saved(image, "WEBP", lossless=True, method=1)
    for orientation in range(1, 9):
        data = saved(picture(33, 21, "RGBA"), "WEBP", exif=exif(orientation))
        yield f"webp exif {orientation}", data
        yield f"webp xmp {orientation}", saved(picture(33, 21), "WEBP", xmp=XMP.format(orientation).encode())
    for mode in ("RGB", "RGBA"):
        frames = [picture(33, 21, mode, seed) for seed in range(3)]
        yield f"webp animated {mode}", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
        lossless = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, minimize_size=True)
        yield f"webp animated lossless {mode}", lossless
    for quality in (0, 30, 100):
        image = picture(77, 65, "RGBA")
        yield f"webp alpha {quality}", saved(image, "WEBP", quality=quality, alpha_quality=quality, exact=True)
    yield "webp unknown kind", b"RIFF\x20\0\0\0WEBPABCD" + bytes(20)


def gifs() -> Files:
    for width, height in (*SIZES, (200, 160)):
        for mode in ("L", "P", "1"):
            yield f"gif {mode} {width}x{height}", saved(picture(width, height, mode), "GIF", interlace=width % 2)
        yield f"gif RGBA {width}x{height}", saved(picture(width, height, "RGBA"), "GIF")
    grey, colours = picture(33, 21, "L"), picture(33, 21, "P")
    for transparent in (0, 7, 255):
        yield f"gif grey, clear {transparent}", saved(grey, "GIF", transparency=transparent)
        yield f"gif colours, clear {transparent}", saved(colours, "GIF", transparency=transparent, comment=b"words")
    frames = [picture(33, 21, "P", seed) for seed in range(3)]
    animated = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0, disposal=2)
    yield "gif animated", animated
    data = bytearray(saved(colours, "GIF"))
    yield "gif smaller screen", bytes(data[:6]) + struct.pack("<HH", 5, 50) + bytes(data[10:])
    yield "gif larger screen", bytes(data[:6]) + struct.pack("<HH", 50, 40) + bytes(data[10:])
    head = 13 + (3 << (1 + (data[10] & 7)) if data[10] & 128 else 0)
    moved = data.copy()
    at = moved.index(b",", head)
    moved[at + 1 : at + 5] = struct.pack("<HH", 4, 9)
    yield "gif moved frame", bytes(moved)
    clear = b"!\xf9\4\1\0\0\3\0"
    yield "gif moved frame, clear around", bytes(moved[:at]) + clear + bytes(moved[at:])
    yield "gif unknown bytes between", bytes(data[:at]) + b"abc" + bytes(data[at:])
    yield "gif short control", bytes(data[:at]) + b"!\xf9\1\1\0" + bytes(data[at:])
    yield "gif early end", b"GIF89a\4\0\4\0\0\0\0,\0\0\0\0\4\0\4\0\0\2\2\x04\x0a\0;"
    yield "gif no frame", b"GIF89a\4\0\4\0\0\0\0;"
    yield "gif empty frame", b"GIF89a\4\0\4\0\0\0\0,\0\0\0\0\0\0\4\0\0\2\2\x04\x0a\0;"
    yield "gif wide codes", b"GIF89a\4\0\4\0\0\0\0,\0\0\0\0\4\0\4\0\0\x0d\2\x04\x0a\0;"


def bmp(
    width: int,
    height: int,
    bits: int,
    data: bytes,
    *,
    compression: int = 0,
    palette: bytes = b"",
    colours: int = 0,
    more: bytes = b"",
    offset: int | None = None,
) -> bytes:
    """A BMP with a header of 40 bytes and `more`; a negative height is top-down."""
    header = struct.pack("<IiiHHIIiiII", 40 + len(more), width, height, 1, bits, compression, 0, 0, 0, colours, 0)
    start = 14 + len(header) + len(more) + len(palette) if offset is None else offset
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, start) + header + more + palette + data


def bmps() -> Files:
    for width, height in SIZES:
        for mode in ("1", "L", "P", "RGB", "RGBA"):
            yield f"bmp {mode} {width}x{height}", saved(picture(width, height, mode), "BMP")
    random = np.random.default_rng(3)
    noise = random.integers(0, 256, 4096, dtype=np.uint8).tobytes()
    quads = np.concatenate([random.integers(0, 256, (256, 3)), np.zeros((256, 1), int)], 1).astype(np.uint8).tobytes()
    for height in (7, -7):
        for bits in (1, 4, 8, 16, 24, 32):
            palette = quads[: 4 << bits] if bits <= 8 else b""
            yield f"bmp {bits} bits, {height}", bmp(13, height, bits, noise, palette=palette)
    masks = {
        32: ((0xFF0000, 0xFF00, 0xFF, 0), (0xFF000000, 0xFF0000, 0xFF00, 0), (0xFF000000, 0xFF00, 0xFF, 0)),
        24: ((0xFF0000, 0xFF00, 0xFF, 0), (0xFF, 0xFF00, 0xFF0000, 0)),
        16: ((0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0), (1, 2, 4, 0)),
    }
    masks[32] += ((0xFF000000, 0xFF0000, 0xFF00, 0xFF), (0xFF, 0xFF00, 0xFF0000, 0xFF000000))
    masks[32] += ((0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF000000, 0xFF00, 0xFF, 0xFF0000), (0, 0, 0, 0))
    for bits, some in masks.items():
        for each in some:
            more = struct.pack("<4I", *each)
            data = bmp(13, 7, bits, noise, compression=3, more=more + bytes(52))
            yield f"bmp fields {bits} {each}", data
            short = bmp(13, 7, bits, more[:12] + noise, compression=3, offset=66)
            yield f"bmp fields behind {bits} {each}", short
    yield "bmp fields of 8 bits", bmp(13, 7, 8, noise, compression=3, palette=quads)
    yield "bmp compression 4", bmp(13, 7, 24, noise, compression=4)
    yield "bmp 2 bits", bmp(13, 7, 2, noise)
    yield "bmp OS/2", b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26 + 768, 12, 13, 7, 1, 8) + PALETTE + noise
    yield "bmp few colours", bmp(13, 7, 8, noise, palette=quads[:20], colours=5)
    yield "bmp 300 colours", bmp(13, 7, 8, noise, palette=quads + quads, colours=300)
    yield "bmp 70,000 colours", bmp(13, 7, 8, noise, palette=quads, colours=70_000)
    greys = b"".join(bytes((i, i, i, 0)) for i in range(16))
    yield "bmp 4 bits of grey", bmp(13, 7, 4, noise, palette=greys)
    yield "bmp 8 bits, 16 greys", bmp(13, 7, 8, noise, palette=greys, colours=16)
    yield "bmp 8 bits, black and white", bmp(13, 7, 8, noise, palette=b"\0\0\0\0\xff\xff\xff\0", colours=2)
    yield "bmp 8 bits, black", bmp(13, 7, 8, noise, palette=b"\0\0\0\0", colours=1)
    yield "bmp without an offset", bmp(13, 7, 24, noise, offset=0)
    yield "bmp header of 30", b"BM" + struct.pack("<IHHII", 0, 0, 0, 54, 30) + noise
    yield "bmp bomb", bmp(20_000, 20_000, 24, b"")
    runs = b"\5\7\3\1\0\0" + b"\0\5abcde\0" + b"\0\2\2\1" + b"\4\x21\0\0" + b"\0\4\x12\x34" + b"\xff\3" * 200 + b"\0\1"
    for compression, bits in ((1, 8), (2, 4), (1, 4), (2, 8), (1, 1), (1, 24)):
        for height in (9, -9):
            palette = quads[: 4 << bits] if bits <= 8 else b""
            data = bmp(13, height, bits, runs, compression=compression, palette=palette)
            yield f"bmp runs {compression} {bits} {height}", data
    greys = b"".join(bytes((i, i, i, 0)) for i in range(256))
    yield "bmp runs, grey", bmp(13, 9, 8, runs, compression=1, palette=greys)
    two = b"\0\0\0\0\xff\xff\xff\0"
    yield "bmp runs, black and white", bmp(13, 9, 8, runs, compression=1, palette=two, colours=2)
    yield "bmp runs end early", bmp(13, 9, 8, runs[:9], compression=1, palette=quads)
    yield "bmp runs, end of picture", bmp(13, 9, 8, runs[:9] + b"\0\1", compression=1, palette=quads)


def directory(*entries: tuple[int, int, int, bytes], more: int = 0, start: int = 8) -> bytes:
    """A TIFF block of (tag, type, count, value or its place) that tells of `more` entries than it has."""
    made = b"MM\0\x2a" + struct.pack(">LH", start, len(entries) + more)
    for tag, kind, count, value in entries:
        made += struct.pack(">HHL", tag, kind, count) + value.ljust(4, b"\0")
    return made


def unreadable_exif() -> dict[str, bytes]:
    """Damaged EXIF blocks, from the TIFF header on, by what is wrong: none tells an orientation of 2 to 8."""
    whole, six = exif(6)[6:], (0x0112, 3, 1, b"\0\6")
    beyond = struct.pack(">L", 1 << 31)
    made = {f"cut to {size}": whole[:size] for size in (1, 4, 7, 8, 9, 10, 15, 21, 33)}
    for number in (0, 9, 65535):
        made[f"orientation {number}"] = directory((0x0112, 3, 1, struct.pack(">H", number)))
    for kind in (0, 1, 2, 7, 14, 99):
        made[f"type {kind}"] = directory((0x0112, kind, 1, b"\6"))
    for count in (0, 9, 0xFFFFFFFF):
        made[f"count {count}"] = directory((0x0112, 3, count, b"\0\6"))
    return made | {
        "nonsense": b"nonsense",
        "unknown byte order": b"XX" + whole[2:],
        "unknown magic": b"MM\0\x2c" + whole[4:],
        "BigTIFF": b"II\x2b\0\x08\0\0\0" + whole[8:],
        "directory beyond the end": directory(six, start=1 << 31),
        "65535 entries, and none": directory(more=65535),
        "text beyond the end": directory((0x010E, 2, 8, beyond), six),
        "orientation beyond the end": directory((0x0112, 4, 2, beyond)),
        "6 / 0": directory((0x0112, 5, 1, struct.pack(">L", 26))) + struct.pack(">LLL", 0, 6, 0),
        "6.5": directory((0x0112, 11, 1, struct.pack(">f", 6.5))),
        "-6": directory((0x0112, 8, 1, struct.pack(">h", -6))),
    }


def odd_exif() -> dict[str, bytes]:
    """Damaged EXIF blocks that still tell orientation 6."""
    six = (0x0112, 3, 1, b"\0\6")
    return {
        "end behind the tag": directory(six),
        "65535 entries, and one": directory(six, more=65534),
        "text of 4 GB": directory((0x010E, 2, 0xFFFFFFFF, b""), six),
        "12 / 2": directory((0x0112, 5, 1, struct.pack(">L", 26))) + struct.pack(">LLL", 0, 12, 2),
        "6.0": directory((0x0112, 11, 1, struct.pack(">f", 6))),
        "two orientations": directory(six, (0x0112, 3, 1, b"\0\3")),
        "width that Pillow cannot write": directory((0x0100, 11, 1, struct.pack(">f", 6.5)), six),
    }


def with_exif(block: bytes, xmp: bytes = b"") -> dict[str, bytes]:
    """A picture 19 x 23 with an EXIF block, from the TIFF header on, in each place that is read for one."""
    image, segment = picture(19, 23), b"Exif\0\0" + block
    profile = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    texts = ((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),) if xmp else ()
    return {
        "jpeg": with_segment(saved(image, "JPEG", xmp=xmp), 0xE1, segment),
        "jpeg with a resolution": with_segment(saved(image, "JPEG", xmp=xmp, dpi=(72, 72)), 0xE1, segment),
        "png": png(19, 23, 8, 2, before=((b"eXIf", block), *texts)),
        "png after its pixels": png(19, 23, 8, 2, after=((b"eXIf", block), *texts)),
        "png in a text": png(19, 23, 8, 2, before=((b"tEXt", profile), *texts)),
        "webp": saved(image, "WEBP", exif=block, xmp=xmp),
    }


def damaged_exif() -> Files:
    for name, block in (unreadable_exif() | odd_exif()).items():
        for place, data in with_exif(block).items():
            yield f"{place}, exif: {name}", data
    for place, data in with_exif(b"nonsense", XMP.format(6).encode()).items():
        yield f"{place}, exif: nonsense beside xmp", data


def image_files() -> dict[str, bytes]:
    """By name; every file once."""
    made = {}
    for files in (jpegs, pngs, webps, gifs, bmps, damaged_exif):
        made.update(files())
    made |= {
        "tiff": saved(picture(9, 9), "TIFF"),
        "text": b"hello world",
        "empty": b"",
        "ico": b"\0\0\1\0" + bytes(40),
    }
    return made


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, as far as there are whole chunks."""
    made, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(made)


def damaged(data: bytes, count: int, random: np.random.Generator) -> Iterator[bytes]:
    """Cut short, with bits flipped, or with bytes replaced, taken out or put in."""
    for number in range(count):
        kind, made = number % 4, bytearray(data)
        if kind == 0:
            made = made[: random.integers(0, len(data))]
        elif kind == 1:
            for at in random.integers(0, len(data), random.integers(1, 4)):
                made[at] ^= 1 << random.integers(8)
        elif kind == 2:
            for at in random.integers(0, min(len(data), 400), random.integers(1, 4)):
                made[at] = random.integers(256)
        else:
            at = int(random.integers(0, len(data)))
            made[at : at + int(random.integers(0, 9))] = random.bytes(int(random.integers(0, 9)))
        yield with_checksums(bytes(made)) if number % 8 > 3 else bytes(made)
