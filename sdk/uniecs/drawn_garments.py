"""Garments drawn as a shop photographs them: worn, from the front, on a plain background."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from PIL import Image, ImageChops

from uniecs.drawing import (
    Canvas,
    Color,
    Look,
    Point,
    box,
    contrast,
    darker,
    ellipse,
    lighter,
    material,
    mirrored,
    mix,
    smooth,
    tube,
)

SKINS: tuple[Color, ...] = ((236, 196, 166), (222, 176, 142), (198, 148, 112), (168, 118, 86))
HAIRS: tuple[Color, ...] = ((34, 26, 24), (52, 36, 28), (74, 48, 34))
JEANS: tuple[Color, ...] = ((58, 78, 112), (40, 52, 80), (96, 118, 148), (48, 48, 54))


def _skin(look: Look) -> Color:
    return random.Random(look.seed * 7 + 1).choice(SKINS)


def _head(canvas: Canvas, look: Look, y: float = 9.5, size: float = 1.0) -> None:
    """A faceless head and neck; the chin is at about y + 7 * size."""
    skin, hair = _skin(look), random.Random(look.seed * 7 + 2).choice(HAIRS)
    if look.woman:
        canvas.paint(
            smooth(
                _scaled(
                    [(22.6, 2), (20.6, 12), (22, 22), (30, 24), (38, 22), (39.4, 12), (37.4, 2), (30, -2.5)], y, size
                )
            ),
            hair,
            0.35,
        )
    canvas.paint(
        tube([(30, y + 3 * size), (30, y + 13 * size)], [5.4 * size, 6.4 * size]), darker(skin, 0.12), 0.3, 1.5
    )
    canvas.paint(ellipse(30, y + 12.6 * size, 5.6 * size, 6.6 * size), darker(skin, 0.06), 0.2, 1.5)
    face = _scaled(
        [(24.8, 7), (25, 11.5), (27.4, 15.6), (30, 16.8), (32.6, 15.6), (35, 11.5), (35.2, 7), (30, 1.5)], y, size
    )
    canvas.paint(smooth(face), skin, 0.22, 1.6)
    if look.woman:
        fringe = [
            (30, 0.6),
            (25, 2.2),
            (23, 9),
            (24, 17),
            (25.2, 11),
            (27.4, 6.4),
            (30.5, 3.6),
            (33, 6.6),
            (34.8, 11),
            (36, 17),
            (37, 9),
            (35, 2.2),
        ]
    else:
        fringe = [
            (30, 0.4),
            (25.6, 1.6),
            (24, 6.5),
            (24.6, 9.5),
            (25.8, 6.6),
            (28.5, 4.9),
            (32, 5.2),
            (34.4, 6.4),
            (35.4, 9.5),
            (36, 6.5),
            (34.4, 1.6),
        ]
    canvas.paint(smooth(_scaled(fringe, y, size)), hair, 0.25, 1.2)


def _scaled(points: list[Point], y: float, size: float) -> list[Point]:
    """Points of a head drawn about (30, 9.5), moved to height `y` and scaled."""
    return [(30 + (px - 30) * size, y + (py - 9.5) * size) for px, py in points]


def _arms(canvas: Canvas, look: Look, top: float = 25.0, bottom: float = 60.0) -> None:
    skin, inset = _skin(look), 1.2 if look.woman else 0.0
    for side in (1, -1):
        line = [
            (18 + inset, top),
            (13.8 + inset, (top + bottom) / 2 - 2),
            (13.6 + inset, bottom - 4),
            (14.2 + inset, bottom),
        ]
        points = [(30 - side * (30 - x), y) for x, y in line]
        canvas.paint(tube(points, [6.2, 5.2, 3.8, 3.2]), skin, 0.3, 1.6)
        hand = (30 - side * (30 - 14.3 - inset), bottom + 1.8)
        canvas.paint(ellipse(hand[0], hand[1], 2.1, 3.2, 8 * side), skin, 0.25, 1.2)


def _legwear(canvas: Canvas, color: Color | Image.Image, top: float, bottom: float = 82.0, spread: float = 1.0) -> None:
    for side in (1, -1):
        line = [
            (30 - side * 5.2, top + 4),
            (30 - side * 6.6 * spread, (top + bottom) / 2),
            (30 - side * 7.0 * spread, bottom),
        ]
        canvas.paint(tube(line, [11.6, 11.4, 9.6]), color, 0.3, 2.2)


def _sleeves(canvas: Canvas, look: Look, cloth: Image.Image, long: bool) -> None:
    inset = 1.2 if look.woman else 0.0
    for side in (1, -1):
        if long:
            line = [(19.6, 25.4), (14.4, 36), (13.0, 48), (13.6, 59.5)]
            widths = [8.6, 7.8, 6.6, 5.0]
        else:
            line = [(19.8, 25.2), (16.2, 30.5), (13.8, 38)]
            widths = [8.4, 8.8, 8.0]
        points = [(30 - side * (30 - x - inset), y) for x, y in line]
        mask = canvas.paint(tube(points, widths), cloth, 0.42, 2.0)
        (bx, by), (ax, ay) = points[-1], points[-2]
        canvas.fold(mask, [(ax + side * 1.5, ay - 3), (ax + side * 2.2, ay + 2)], 1.0, 0.35)
        canvas.fold(mask, [(bx - 5, by - 1.0), (bx + 5, by - 1.0)], 0.5, 0.4)


def _torso(look: Look, hem: float, neck: float = 23.0, flare: float = 0.0) -> list[Point]:
    """The outline of a top from the neck to the hem; `flare` widens the hem."""
    waist = 20.4 if look.woman else 18.2
    bust = 18.4 if look.woman else 17.2
    hip = 17.8 if look.woman else 17.6
    left: list[Point] = [
        (30, neck),
        (27.5, neck - 1.2),
        (25.4, 18.8),
        (25.4, 18.8),
        (20.5, 20.8),
        (16.6, 24.4),
        (16.6, 24.4),
        (bust, 34),
    ]
    left += [(waist, 46), (hip - flare * 0.3, 56), (hip - flare, hem), (hip - flare, hem), (30, hem + 1.2)]
    return smooth(mirrored(left))


def _folds(canvas: Canvas, mask: Image.Image, hem: float) -> None:
    for x0, y0, x1, y1 in ((20, 33, 24, 40), (40, 33, 36.5, 41), (21, 47, 26, 52), (39, 46, 35, 52)):
        canvas.fold(mask, [(x0, y0), ((x0 + x1) / 2, y0 + 2), (x1, y1)], 1.3, 0.28)
    canvas.fold(mask, [(17, hem - 1.3), (43, hem - 1.3)], 0.45, 0.35)
    canvas.gleam(mask, [(25, 28), (24, 36), (24.6, 44)], 4.0, 0.10)


def _start_top(
    look: Look, hem: float, long: bool, legs: Color, neck: float = 23.0, flare: float = 0.0
) -> tuple[Canvas, Image.Image]:
    """The wearer, the sleeves and the body of a top; returns the canvas and the body's mask."""
    canvas, cloth = Canvas(look.background), material(look)
    _legwear(canvas, legs, 54)
    _arms(canvas, look)
    _sleeves(canvas, look, cloth, long)
    _head(canvas, look)
    mask = canvas.paint(_torso(look, hem, neck, flare), cloth, 0.36, 3.6)
    _folds(canvas, mask, hem)
    return canvas, mask


def tshirt(look: Look) -> Canvas:
    """A round-necked T-shirt, with a graphic on the chest when printed."""
    canvas, mask = _start_top(look, 64, False, random.Random(look.seed).choice(JEANS), neck=24)
    rim = smooth([(25.4, 18.8), (27.2, 22.6), (30, 24), (32.8, 22.6), (34.6, 18.8)], closed=False)
    canvas.stroke(rim, darker(look.color, 0.25), 0.9)
    if look.pattern == "Printed":
        _chest_print(canvas, look, mask)
    return canvas


def _chest_print(canvas: Canvas, look: Look, mask: Image.Image) -> None:
    rng, ink = random.Random(look.seed), contrast(look.color)
    kind = rng.randrange(3)
    if kind == 0:
        canvas.paint(ImageChops.multiply(mask, canvas.mask(ellipse(30, 36, 7, 7))), look.accent, 0.1)
        for i in range(3):
            canvas.stroke([(25, 34 + 2.2 * i), (35, 34 + 2.2 * i)], ink, 0.9)
    elif kind == 1:
        for i, width in enumerate((7, 5, 7, 4)):
            canvas.stroke([(30 - width, 31 + 3.4 * i), (30 + width, 31 + 3.4 * i)], ink if i % 2 else look.accent, 1.9)
    else:
        star = [(30 + r * x, 36 + r * y) for r, x, y in _star()]
        canvas.paint(star, look.accent, 0.1)
        canvas.stroke([(24, 45.5), (36, 45.5)], ink, 1.6)


def _star() -> list[tuple[float, float, float]]:
    points = ellipse(0, 0, 1, 1)
    return [(8.0 if i % 2 == 0 else 3.4, *points[(i * 36 // 5 + 54) % 72]) for i in range(10)]


def shirt(look: Look) -> Canvas:
    """A long-sleeved shirt with collar, placket, buttons and a pocket."""
    trousers = random.Random(look.seed).choice(((44, 46, 56), (70, 62, 54), (52, 66, 98), (150, 138, 116)))
    canvas, mask = _start_top(look, 63, True, trousers, neck=26)
    cloth = material(look)
    canvas.fold(mask, [(30.9, 27), (30.9, 63)], 0.6, 0.55)
    canvas.fold(mask, [(28.8, 27), (28.8, 63)], 0.35, 0.35)
    canvas.dots([(29.9, 29 + 5.6 * i) for i in range(6)], mix(contrast(look.color), look.color, 0.3), 0.42)
    for side in (1, -1):
        collar = [
            (30 - side * 5.2, 17.4),
            (30 - side * 6.8, 21.4),
            (30 - side * 4.4, 26.6),
            (30, 25.4),
            (30 - side * 3.4, 21.5),
        ]
        canvas.paint(collar, cloth, 0.34, 0.9)
    if not look.woman:
        pocket = canvas.mask(box(33.4, 33, 39.2, 40, 0.8))
        canvas.fold(pocket, [(33.4, 33), (33.4, 40), (39.2, 40), (39.2, 33), (33.4, 33)], 0.5, 0.6)
    return canvas


def kurta(look: Look) -> Canvas:
    """A long kurta with side slits over slim trousers; an embroidered neck line."""
    canvas, cloth = Canvas(look.background), material(look)
    _legwear(canvas, (238, 232, 220) if not look.woman else mix(look.accent, (120, 110, 100), 0.35), 60)
    _arms(canvas, look)
    _sleeves(canvas, look, cloth, True)
    _head(canvas, look)
    mask = canvas.paint(_torso(look, 76, 28, 3.2), cloth, 0.36, 3.6)
    _folds(canvas, mask, 76)
    trim = contrast(look.color) if look.pattern == "Solid" else look.accent
    canvas.stroke([(25.4, 18.8), (27.4, 24), (30, 28), (32.6, 24), (34.6, 18.8)], trim, 1.3)
    canvas.stroke([(30, 28), (30, 39)], trim, 1.6)
    canvas.dots([(30, 29.5 + 3 * i) for i in range(4)], darker(look.color, 0.4), 0.45)
    for i in range(25):
        x = 14.4 + i * 1.3
        if 14.4 <= x <= 45.6:
            canvas.dots([(x, 73.6)], trim, 0.5)
    canvas.fold(mask, [(18, 60), (17, 76)], 0.6, 0.5)
    canvas.fold(mask, [(42, 60), (43, 76)], 0.6, 0.5)
    return canvas


def jacket(look: Look) -> Canvas:
    """A zipped jacket with a stand-up collar, pockets and ribbed cuffs."""
    canvas, mask = _start_top(look, 61, True, random.Random(look.seed).choice(JEANS), neck=22)
    cloth, rib = material(look), darker(look.color, 0.3)
    canvas.paint(
        smooth(
            [
                (23.6, 16.6),
                (23.6, 16.6),
                (24.2, 23),
                (30, 26),
                (35.8, 23),
                (36.4, 16.6),
                (36.4, 16.6),
                (33, 20),
                (30, 21),
                (27, 20),
            ]
        ),
        cloth,
        0.4,
        1.2,
    )
    canvas.stroke([(30, 22), (30, 61)], (206, 206, 208), 1.0)
    canvas.stroke([(30, 22), (30, 61)], darker(look.color, 0.55), 0.4)
    for side in (1, -1):
        canvas.stroke([(30 - side * 6.2, 54), (30 - side * 9.6, 46.5)], rib, 0.9)
        canvas.fold(mask, [(30 - side * 12.5, 31), (30 - side * 2, 32.5)], 0.6, 0.5)
        canvas.stroke([(30 - side * 17.8, 58.4), (30 - side * 14.6, 59.2)], rib, 1.8)
    hem = canvas.mask(box(16.5, 58.2, 43.5, 63))
    canvas.paint(ImageChops.multiply(hem, mask), rib, 0.15)
    canvas.stroke([(35, 36), (38.5, 36)], look.accent, 1.1)
    return canvas


def dress(look: Look) -> Canvas:
    """A sleeveless dress, fitted above the waist and flared below, with bare legs."""
    canvas, cloth, skin = Canvas(look.background), material(look), _skin(look)
    _arms(canvas, look, 21, 53)
    for side in (1, -1):
        canvas.paint(tube([(30 - side * 4.4, 58), (30 - side * 4.6, 82)], [7.0, 5.0]), skin, 0.3, 1.4)
    _head(canvas, look, 7.4, 0.86)
    canvas.paint(
        smooth([(24.5, 16.5), (19, 18.5), (18, 24), (30, 30), (42, 24), (41, 18.5), (35.5, 16.5)]), skin, 0.15, 1.5
    )
    length = random.Random(look.seed).choice((64.0, 68.0, 72.0))
    left: list[Point] = [
        (30, 24.5),
        (26, 22),
        (23.4, 16.6),
        (23.4, 16.6),
        (20.4, 17.4),
        (20.4, 17.4),
        (19.6, 26),
        (21.6, 38),
    ]
    left += [(18.6, 48), (13.6, length - 2), (12.4, length), (12.4, length), (21, length + 1.8), (30, length + 1)]
    mask = canvas.paint(smooth(mirrored(left)), cloth, 0.36, 3.2)
    for x, drop in ((17, 0), (22.5, 3), (28, -2), (33, 1), (38.5, -1), (43, 2)):
        canvas.fold(mask, [(30 + (x - 30) * 0.55, 43 + drop), (x, length)], 1.3, 0.36)
    belt = darker(look.color, 0.55) if look.pattern != "Solid" else darker(look.color, 0.3)
    canvas.paint(ImageChops.multiply(mask, canvas.mask(box(15, 37.4, 45, 39.8))), belt, 0.2, 2)
    return canvas


def _waist_down(look: Look) -> Canvas:
    """The wearer of trousers, shorts or a skirt, from a plain top's hem down."""
    canvas = Canvas(look.background)
    rng = random.Random(look.seed * 3)
    top = rng.choice(((244, 243, 240), (52, 54, 62), (176, 182, 190), (226, 214, 196)))
    canvas.paint(smooth(mirrored([(30, -2), (19, -2), (18.4, 5), (18, 12), (30, 13)])), top, 0.3, 3)
    skin = _skin(look)
    for side in (1, -1):
        canvas.paint(
            tube([(30 - side * 15.6, -2), (30 - side * 16.4, 10), (30 - side * 15.2, 21)], [5.0, 4.6, 3.2]),
            skin,
            0.3,
            1.4,
        )
        canvas.paint(ellipse(30 - side * 14.9, 24, 2.1, 3.6, 8 * side), skin, 0.25, 1.2)
    return canvas


def _waistband(canvas: Canvas, look: Look, y: float, buttoned: bool = True) -> None:
    canvas.paint(
        smooth(
            [
                (18.4, y),
                (18.4, y),
                (30, y + 0.9),
                (41.6, y),
                (41.6, y),
                (41.8, y + 3),
                (41.8, y + 3),
                (30, y + 4),
                (18.2, y + 3),
                (18.2, y + 3),
            ]
        ),
        darker(look.color, 0.16),
        0.2,
        1.5,
    )
    for x in (21.5, 38.5):
        canvas.stroke([(x, y + 0.2), (x, y + 3.6)], darker(look.color, 0.4), 0.7)
    if buttoned:
        canvas.dots([(30, y + 2.3)], (196, 168, 108), 0.75)


def _two_legs(canvas: Canvas, look: Look, end: float, hem_outer: float, hem_inner: float) -> Image.Image:
    cloth = material(look)
    left: list[Point] = [
        (18.3, 12),
        (18.3, 12),
        (16.6, 22),
        (17.2, 36),
        (hem_outer, end),
        (hem_outer, end),
        (hem_inner, end + 0.8),
    ]
    left += [
        (hem_inner, end + 0.8),
        (27.6, 44 if end > 60 else end - 6),
        (29.6, 27),
        (30.4, 24),
        (30.4, 24),
        (30.4, 12.6),
        (30.4, 12.6),
    ]
    right = [(60 - x, y) for x, y in left]
    mask = canvas.paint(smooth(right), cloth, 0.36, 2.2)
    mask = ImageChops.lighter(mask, canvas.paint(smooth(left), cloth, 0.36, 2.2))
    for side in (1, -1):
        canvas.fold(mask, [(30 - side * 11.8, 15.5), (30 - side * 10.4, 19.5), (30 - side * 7.2, 16.4)], 0.6, 0.55)
        canvas.fold(mask, [(30, 25), (30 - side * 5, 28.5)], 1.0, 0.4)
    canvas.fold(mask, [(30, 16), (30.2, 24)], 0.6, 0.5)
    return mask


def jeans(look: Look) -> Canvas:
    """Five-pocket jeans, washed paler at the thighs, with seams in yellow thread."""
    canvas = _waist_down(look)
    _shoes(canvas, look)
    mask = _two_legs(canvas, look, 77, 19.2, 27.2)
    thread = (206, 152, 84)
    for side in (1, -1):
        canvas.stroke([(30 - side * 11.9, 15.3), (30 - side * 10.2, 19.2), (30 - side * 7.0, 16.1)], thread, 0.32)
        for y in (48, 51, 71):
            canvas.fold(mask, [(30 - side * 11, y), (30 - side * 5, y + 1.6)], 1.0, 0.3)
    canvas.stroke([(31.4, 16), (31.6, 22), (30.4, 24.5)], thread, 0.3)
    _waistband(canvas, look, 11.4)
    return canvas


def trousers(look: Look) -> Canvas:
    """Formal trousers with a crease down each leg and a belt."""
    canvas = _waist_down(look)
    _shoes(canvas, look)
    mask = _two_legs(canvas, look, 77, 19.0, 27.4)
    for side in (1, -1):
        canvas.fold(mask, [(30 - side * 6.6, 20), (30 - side * 7.0, 76)], 0.6, 0.6)
        canvas.gleam(mask, [(30 - side * 7.6, 22), (30 - side * 7.9, 75)], 0.8, 0.2)
    _waistband(canvas, look, 11.4)
    canvas.paint(box(18.3, 11.8, 41.7, 14.2, 0.6), (44, 34, 30), 0.2, 1.5)
    canvas.paint(box(28, 11.4, 32, 14.6, 0.5), (204, 190, 150), 0.1)
    canvas.paint(box(29, 12.3, 31, 13.7, 0.2), (44, 34, 30), 0.0)
    return canvas


def _shoes(canvas: Canvas, look: Look) -> None:
    color = random.Random(look.seed * 5).choice(((40, 34, 32), (92, 62, 44), (230, 228, 224)))
    for side in (1, -1):
        canvas.paint(ellipse(30 - side * 7.8, 78.2, 4.0, 2.2), color, 0.3, 1.0)


def shorts(look: Look) -> Canvas:
    """Shorts to the knee, with bare legs below."""
    canvas, skin = _waist_down(look), _skin(look)
    for side in (1, -1):
        canvas.paint(
            tube([(30 - side * 7, 40), (30 - side * 7.2, 58), (30 - side * 7, 82)], [8.2, 7.0, 4.8]), skin, 0.3, 1.6
        )
    mask = _two_legs(canvas, look, 50, 15.4, 28.4)
    for side in (1, -1):
        canvas.fold(mask, [(30 - side * 15, 48.6), (30 - side * 1.5, 49.2)], 0.5, 0.5)
    _waistband(canvas, look, 11.4)
    canvas.stroke([(29, 15.5), (27.6, 21)], lighter(look.color, 0.75), 0.6)
    canvas.stroke([(31, 15.5), (32, 20)], lighter(look.color, 0.75), 0.6)
    return canvas


def skirt(look: Look) -> Canvas:
    """A flared skirt above the knee, in soft pleats."""
    canvas, skin = _waist_down(look), _skin(look)
    for side in (1, -1):
        canvas.paint(
            tube([(30 - side * 5.4, 44), (30 - side * 5.6, 60), (30 - side * 5.2, 82)], [8.0, 6.4, 4.4]), skin, 0.3, 1.6
        )
    end = random.Random(look.seed).choice((50.0, 55.0, 60.0))
    left: list[Point] = [
        (30, 12),
        (18.6, 12),
        (18.6, 12),
        (16.2, 24),
        (10.4, end),
        (10.4, end),
        (20, end + 2),
        (30, end + 1.4),
    ]
    mask = canvas.paint(smooth(mirrored(left)), material(look), 0.38, 3.4)
    for x in (14.5, 19.5, 25, 30.5, 36, 41, 46):
        canvas.fold(mask, [(30 + (x - 30) * 0.6, 17), (x, end + 1)], 1.5, 0.4)
        canvas.gleam(mask, [(28.4 + (x - 30) * 0.6, 20), (x - 2.4, end)], 1.4, 0.14)
    _waistband(canvas, look, 11.4, buttoned=False)
    return canvas


GARMENTS: Mapping[str, Callable[[Look], Canvas]] = {
    "Tshirts": tshirt,
    "Shirts": shirt,
    "Kurtas": kurta,
    "Jackets": jacket,
    "Dresses": dress,
    "Jeans": jeans,
    "Trousers": trousers,
    "Shorts": shorts,
    "Skirts": skirt,
}
