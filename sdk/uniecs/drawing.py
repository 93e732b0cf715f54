"""A small drawing board for product pictures: smooth shapes, soft shading, woven and printed fabrics.

Positions and lengths are in units of a picture 60 wide and 80 high, whatever its size in pixels. Everything
drawn is a pure function of its arguments: no clock and no global random state.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Point = tuple[float, float]

WIDTH_UNITS, HEIGHT_UNITS = 60, 80
WIDTH_PX, HEIGHT_PX = 240, 320
SUPERSAMPLE = 2
SCALE = WIDTH_PX // WIDTH_UNITS * SUPERSAMPLE
GOLD, STEEL = (206, 170, 96), (188, 192, 198)
SIZE = (WIDTH_PX * SUPERSAMPLE, HEIGHT_PX * SUPERSAMPLE)


@dataclass(frozen=True)
class Look:
    """What a drawn product looks like; `seed` chooses the small details, `flip` and `zoom` the camera."""

    article: str
    color: Color
    accent: Color
    pattern: str = "Solid"
    woman: bool = False
    seed: int = 0
    background: Color = (255, 255, 255)
    flip: bool = False
    zoom: float = 1.0


def mix(a: Color, b: Color, share: float) -> Color:
    """The colour `share` (0 to 1) of the way from `a` to `b`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def darker(color: Color, share: float) -> Color:
    """`color` moved towards a warm black."""
    return mix(color, (20, 16, 18), share)


def lighter(color: Color, share: float) -> Color:
    """`color` moved towards white."""
    return mix(color, (255, 255, 255), share)


def contrast(color: Color) -> Color:
    """A colour in which a pattern shows on `color`: white on dark and strong colours, dark on pale ones."""
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (250, 249, 246) if luminance < 175 else darker(color, 0.62)


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 10) -> list[Point]:
    """A Catmull-Rom curve through `points`; a point given twice in a row is a corner."""
    n = len(points)
    curve: list[Point] = []
    for i in range(n if closed else n - 1):
        if closed:
            p0, p1, p2, p3 = (points[(i + d) % n] for d in (-1, 0, 1, 2))
        else:
            p0, p1, p2, p3 = (points[min(max(i + d, 0), n - 1)] for d in (-1, 0, 1, 2))
        if p1 == p2:
            continue
        for step in range(steps):
            t = step / steps
            curve.append(
                (
                    _catmull_rom(p0[0], p1[0], p2[0], p3[0], t),
                    _catmull_rom(p0[1], p1[1], p2[1], p3[1], t),
                )
            )
    if not closed:
        curve.append(points[-1])
    return curve


def _catmull_rom(a: float, b: float, c: float, d: float, t: float) -> float:
    return b + t * ((c - a) + t * ((2 * a - 5 * b + 4 * c - d) + t * (3 * (b - c) + d - a))) / 2


def mirrored(left: Sequence[Point]) -> list[Point]:
    """Close the left half of an outline (from top centre to bottom centre) by its reflection in x = 30."""
    return [*left, *((WIDTH_UNITS - x, y) for x, y in reversed(left))]


def tube(points: Sequence[Point], widths: Sequence[float]) -> list[Point]:
    """A limb or strap: a smooth line through `points`, `widths[i]` wide at `points[i]`, with a round start."""
    line = smooth(points, closed=False)
    last = len(line) - 1
    left, right = [], []
    for i, (x, y) in enumerate(line):
        at = i / last * (len(widths) - 1)
        low = min(int(at), len(widths) - 2)
        half = (widths[low] + (widths[low + 1] - widths[low]) * (at - low)) / 2
        (ax, ay), (bx, by) = line[max(i - 1, 0)], line[min(i + 1, last)]
        length = math.hypot(bx - ax, by - ay) or 1.0
        dx, dy = (by - ay) / length * half, -(bx - ax) / length * half
        left.append((x + dx, y + dy))
        right.append((x - dx, y - dy))
    (x, y), radius = line[0], widths[0] / 2
    start = math.atan2(right[0][1] - y, right[0][0] - x)
    cap = [
        (x + radius * math.cos(start + i * math.pi / 8), y + radius * math.sin(start + i * math.pi / 8))
        for i in range(1, 8)
    ]
    return left + right[::-1] + cap


def ellipse(x: float, y: float, rx: float, ry: float, turn_degrees: float = 0.0) -> list[Point]:
    """The outline of an ellipse about (x, y), turned clockwise."""
    c, s = math.cos(math.radians(turn_degrees)), math.sin(math.radians(turn_degrees))
    outline = []
    for i in range(72):
        u, v = rx * math.cos(math.tau * i / 72), ry * math.sin(math.tau * i / 72)
        outline.append((x + u * c - v * s, y + u * s + v * c))
    return outline


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> list[Point]:
    """The outline of a rectangle with rounded corners."""
    if radius <= 0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    centres = (
        (x1 - radius, y0 + radius, -90),
        (x1 - radius, y1 - radius, 0),
        (x0 + radius, y1 - radius, 90),
        (x0 + radius, y0 + radius, 180),
    )
    return [
        (x + radius * math.cos(math.radians(start + a)), y + radius * math.sin(math.radians(start + a)))
        for x, y, start in centres
        for a in range(0, 91, 15)
    ]


class Canvas:
    """A picture being drawn, at `SUPERSAMPLE` times its final size."""

    def __init__(self, background: Color = (255, 255, 255)) -> None:
        self.background = background
        self.image = Image.new("RGB", SIZE, background)

    def mask(self, outline: Sequence[Point]) -> Image.Image:
        """The inside of `outline` as an 8-bit mask."""
        mask = Image.new("L", SIZE)
        ImageDraw.Draw(mask).polygon([(x * SCALE, y * SCALE) for x, y in outline], fill=255)
        return mask

    def paint(
        self, outline: Sequence[Point] | Image.Image, fill: Color | Image.Image, depth: float = 0.3, roll: float = 3.0
    ) -> Image.Image:
        """Fill a shape with a colour or a fabric, rounded by shading; returns its mask.

        `depth` is how dark the shaded edge gets (0 to 1), `roll` how far in from the edge the shading reaches.
        """
        mask = outline if isinstance(outline, Image.Image) else self.mask(outline)
        area = _around(mask, 2 * roll)
        part = mask.crop(area)
        layer = Image.new("RGB", part.size, fill) if isinstance(fill, tuple) else fill.crop(area)
        if depth > 0:
            layer = ImageChops.multiply(layer, self._shade(part, depth, roll))
        self.image.paste(layer, area[:2], part)
        return mask

    def _shade(self, mask: Image.Image, depth: float, roll: float) -> Image.Image:
        # Light from the upper left: the blurred mask is moved that way, so lower right edges come out darker.
        soft = mask.filter(ImageFilter.GaussianBlur(roll * SCALE))
        soft = _moved(soft, -0.35 * roll, -0.25 * roll)
        table = [round(255 * (1 - depth * (1 - min(max((v - 90) / 150, 0.0), 1.0)) ** 1.3)) for v in range(256)]
        shade = soft.point(table)
        return Image.merge("RGB", (shade, shade, shade))

    def cast(self, x: float, y: float, rx: float, ry: float, strength: float = 0.22) -> None:
        """The soft shadow of something that stands on the ground about (x, y)."""
        mask = self.mask(ellipse(x, y, rx, ry)).filter(ImageFilter.GaussianBlur(1.2 * SCALE))
        self.image.paste(darker(self.background, 0.7), (0, 0), mask.point([round(v * strength) for v in range(256)]))

    def stroke(self, points: Sequence[Point], color: Color, width: float, curved: bool = True) -> None:
        """A line of even width with round ends."""
        line = smooth(points, closed=False) if curved and len(points) > 2 else list(points)
        pixels = [(x * SCALE, y * SCALE) for x, y in line]
        draw, radius = ImageDraw.Draw(self.image), width * SCALE / 2
        draw.line(pixels, fill=color, width=max(1, round(width * SCALE)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def fold(self, inside: Image.Image, points: Sequence[Point], width: float = 1.2, strength: float = 0.3) -> None:
        """A soft dark crease along `points`, kept within the mask `inside`."""
        line, area = _soft_line(inside, points, width, strength)
        dark = self.image.crop(area).point([round(v * 0.45) for v in range(256)] * 3)
        self.image.paste(dark, area[:2], line)

    def gleam(self, inside: Image.Image, points: Sequence[Point], width: float = 1.6, strength: float = 0.5) -> None:
        """A soft highlight along `points`, kept within the mask `inside`."""
        line, area = _soft_line(inside, points, width, strength)
        self.image.paste((255, 255, 255), area, line)

    def dots(self, centres: Sequence[Point], color: Color, radius: float) -> None:
        """Small round things: buttons, rivets, eyelets."""
        draw, r = ImageDraw.Draw(self.image), radius * SCALE
        for x, y in centres:
            draw.ellipse((x * SCALE - r, y * SCALE - r, x * SCALE + r, y * SCALE + r), fill=color)

    def finished(self, flip: bool = False, zoom: float = 1.0) -> Image.Image:
        """The picture at its final size (240x320 RGB), mirrored and scaled about its centre on request."""
        picture = self.image.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BOX)
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if zoom == 1.0:
            return picture
        small = picture.resize((round(WIDTH_PX * zoom), round(HEIGHT_PX * zoom)), Image.Resampling.LANCZOS)
        framed = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), self.background)
        framed.paste(small, ((WIDTH_PX - small.width) // 2, (HEIGHT_PX - small.height) // 2))
        return framed


def _around(mask: Image.Image, margin: float) -> tuple[int, int, int, int]:
    """The box around what a mask shows and `margin` more, within the picture: shading it is all that costs."""
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    pad = math.ceil(margin * SCALE)
    return max(left - pad, 0), max(top - pad, 0), min(right + pad, SIZE[0]), min(bottom + pad, SIZE[1])


def _soft_line(
    inside: Image.Image, points: Sequence[Point], width: float, strength: float
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A blurred line as a mask, cropped to the box that is returned beside it."""
    line = Image.new("L", SIZE)
    pixels = [(x * SCALE, y * SCALE) for x, y in smooth(points, closed=False)]
    ImageDraw.Draw(line).line(pixels, fill=255, width=max(1, round(width * SCALE)), joint="curve")
    area = _around(line, 2 * width)
    soft = line.crop(area).filter(ImageFilter.GaussianBlur(0.5 * width * SCALE))
    return ImageChops.multiply(soft, inside.crop(area)).point([round(v * strength) for v in range(256)]), area


def _moved(mask: Image.Image, dx: float, dy: float) -> Image.Image:
    moved = Image.new("L", mask.size)
    moved.paste(mask, (round(dx * SCALE), round(dy * SCALE)))
    return moved


def fabric(pattern: str, color: Color, accent: Color, seed: int) -> Image.Image:
    """A sheet of cloth of the canvas's size: Striped, Pinstriped, Checked, Polka Dot, Floral, Colourblocked, Denim.

    Any other pattern is plain cloth, for the article to print or trim.
    """
    sheet = Image.new("RGB", SIZE, color)
    draw = ImageDraw.Draw(sheet)
    rng = random.Random(seed)
    if pattern == "Striped":
        step, share = rng.choice((4.0, 5.0, 6.5)), rng.choice((0.35, 0.5))
        _bands(draw, step, step * share, accent, across=True)
    elif pattern == "Pinstriped":
        _bands(draw, rng.choice((2.4, 3.2)), 0.7, mix(color, accent, 0.75), across=False)
    elif pattern == "Checked":
        return _checks(color, accent, rng.choice((5.0, 6.5, 8.0)))
    elif pattern == "Polka Dot":
        _dots(draw, rng.choice((4.2, 5.4)), rng.choice((0.85, 1.15)), accent)
    elif pattern == "Floral":
        _flowers(draw, color, accent, rng)
    elif pattern == "Colourblocked":
        draw.rectangle((0, 0, SIZE[0], round(23 * SCALE)), fill=accent)
    elif pattern == "Denim":
        return _denim(color, rng)
    return sheet


def _bands(draw: ImageDraw.ImageDraw, step: float, width: float, color: Color, across: bool) -> None:
    for i in range(int((HEIGHT_UNITS if across else WIDTH_UNITS) / step) + 1):
        low, high = i * step * SCALE, (i * step + width) * SCALE
        draw.rectangle((0, low, SIZE[0], high) if across else (low, 0, high, SIZE[1]), fill=color)


def _checks(color: Color, accent: Color, step: float) -> Image.Image:
    sheet = Image.new("RGB", SIZE, color)
    for across in (True, False):
        weave = Image.new("L", SIZE)
        draw = ImageDraw.Draw(weave)
        for i in range(int(HEIGHT_UNITS / step) + 1):
            for offset, width, share in ((0.0, 0.46, 0.5), (0.7, 0.09, 0.75)):
                low, high = (i + offset) * step * SCALE, (i + offset + width) * step * SCALE
                area = (0, low, SIZE[0], high) if across else (low, 0, high, SIZE[1])
                draw.rectangle(area, fill=round(255 * share))
        sheet.paste(accent, (0, 0), weave)
    return sheet


def _dots(draw: ImageDraw.ImageDraw, step: float, radius: float, color: Color) -> None:
    r = radius * SCALE
    for row in range(int(HEIGHT_UNITS / step * 2) + 2):
        for column in range(int(WIDTH_UNITS / step) + 2):
            x = (column + row % 2 / 2) * step * SCALE
            y = row * step / 2 * SCALE
            draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _flowers(draw: ImageDraw.ImageDraw, color: Color, accent: Color, rng: random.Random) -> None:
    step, leaf = 6.0, mix((70, 120, 60), color, 0.25)
    for row in range(15):
        for column in range(12):
            x = (column + row % 2 / 2 + rng.uniform(-0.16, 0.16)) * step * SCALE
            y = (row + rng.uniform(-0.16, 0.16)) * step * SCALE
            turn, size = rng.uniform(0, math.tau), rng.uniform(0.75, 1.1) * SCALE
            end = turn + 0.6
            draw.line((x, y, x + 2.6 * size * math.cos(end), y + 2.6 * size * math.sin(end)), fill=leaf, width=4)
            for petal in range(5):
                px = x + size * math.cos(turn + petal * math.tau / 5)
                py = y + size * math.sin(turn + petal * math.tau / 5)
                draw.ellipse((px - 0.75 * size, py - 0.75 * size, px + 0.75 * size, py + 0.75 * size), fill=accent)
            draw.ellipse((x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=(236, 190, 70))


def _denim(color: Color, rng: random.Random) -> Image.Image:
    """Twill with paler thighs and knees, as washed jeans have."""
    sheet = Image.new("RGB", SIZE, color)
    draw = ImageDraw.Draw(sheet)
    for _ in range(900):
        x, y = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
        draw.line((x, y, x + 3, y + rng.uniform(6, 20)), fill=lighter(color, rng.uniform(0.03, 0.16)), width=1)
    wash = Image.new("L", SIZE)
    for x in (22.5, 37.5):
        outline = [(px * SCALE, py * SCALE) for px, py in ellipse(x, 34, 3.2, 19)]
        ImageDraw.Draw(wash).polygon(outline, fill=95)
    sheet.paste(lighter(color, 0.55), (0, 0), wash.filter(ImageFilter.GaussianBlur(2.2 * SCALE)))
    return sheet


def material(look: Look) -> Image.Image:
    """The cloth or leather of a look."""
    return fabric(look.pattern, look.color, look.accent, look.seed)


def detail(look: Look) -> Color:
    """The colour of a look's logos and stripes."""
    return look.accent if look.pattern == "Colourblocked" else contrast(look.color)
