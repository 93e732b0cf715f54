"""Bags, watches and other goods drawn as a shop photographs them: alone, on a plain background."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from PIL import ImageChops

from uniecs.drawing import (
    GOLD,
    STEEL,
    Canvas,
    Color,
    Look,
    Point,
    box,
    contrast,
    darker,
    detail,
    ellipse,
    lighter,
    material,
    mirrored,
    mix,
    smooth,
    tube,
)


def handbag(look: Look) -> Canvas:
    """A structured handbag with two handles, a flap seam and metal rings."""
    canvas, cloth = Canvas(look.background), material(look)
    canvas.cast(30, 68.4, 24, 2.0)
    canvas.stroke([(20, 37), (20.6, 22), (30, 13.4), (39.4, 22), (40, 37)], darker(look.color, 0.5), 1.9)
    wide = random.Random(look.seed).choice((3.4, 5.4))
    left: list[Point] = [
        (30, 33.2),
        (12, 33.4),
        (12, 33.4),
        (9.4, 40),
        (wide, 65),
        (wide + 1.6, 68),
        (12, 69),
        (30, 69.4),
    ]
    body = canvas.paint(smooth(mirrored(left)), cloth, 0.4, 3.4)
    canvas.stroke([(17.6, 40), (18.6, 24), (30, 15.4), (41.4, 24), (42.4, 40)], darker(look.color, 0.22), 2.1)
    canvas.stroke([(17.3, 39), (18.2, 24), (29.7, 15)], lighter(look.color, 0.3), 0.5)
    trim = darker(look.color, 0.3)
    base = canvas.mask(smooth([(0, 60), (30, 62.4), (60, 60), (60, 72), (0, 72)]))
    canvas.paint(ImageChops.multiply(base, body), trim, 0.4, 2.6)
    canvas.stroke([(11.4, 37), (30, 38), (48.6, 37)], trim, 0.9)
    for x in (17.6, 42.4):
        canvas.paint(box(x - 1.7, 38.6, x + 1.7, 47, 0.6), trim, 0.3, 0.8)
        canvas.paint(ellipse(x, 40, 1.9, 1.9), GOLD, 0.3, 0.5)
        canvas.paint(ellipse(x, 40, 1.0, 1.0), trim, 0.0)
    canvas.paint(box(26.6, 45.6, 33.4, 50.6, 0.8), GOLD, 0.3, 0.8)
    canvas.fold(body, [(13, 44), (11, 58)], 1.6, 0.3)
    canvas.gleam(body, [(15, 42), (13, 58)], 2.0, 0.3)
    return canvas


def backpack(look: Look) -> Canvas:
    """A school backpack from the front: top handle, two pockets with zips, side straps."""
    canvas, cloth, trim = Canvas(look.background), material(look), detail(look)
    canvas.cast(30, 73.4, 21, 2.0)
    for side in (1, -1):
        canvas.paint(
            tube(
                [(30 - side * 14, 22), (30 - side * 23, 36), (30 - side * 22, 58), (30 - side * 16, 70)],
                [4, 4.4, 3.4, 3],
            ),
            darker(look.color, 0.5),
            0.35,
            1.2,
        )
    canvas.stroke([(25.4, 9), (26, 5.4), (34, 5.4), (34.6, 9)], darker(look.color, 0.5), 1.8)
    left: list[Point] = [(30, 7), (19.6, 9.4), (12.4, 20), (9.6, 40), (9.2, 64), (11.6, 72), (22, 74), (30, 74.2)]
    body = canvas.paint(smooth(mirrored(left)), cloth, 0.42, 3.6)
    canvas.stroke(
        [(14.4, 30), (16.4, 20), (22, 13), (30, 11), (38, 13), (43.6, 20), (45.6, 30)], darker(look.color, 0.55), 0.8
    )
    upper = canvas.paint(
        smooth(mirrored([(30, 27), (18, 28), (15.4, 32), (15, 41), (18, 44), (30, 44.6)])),
        mix(look.color, (255, 255, 255), 0.07),
        0.3,
        2,
    )
    pocket = canvas.paint(
        smooth(mirrored([(30, 46.6), (15.6, 47.4), (13.4, 52), (13, 66), (16, 70.6), (30, 71.2)])),
        look.accent if look.pattern == "Colourblocked" else darker(look.color, 0.12),
        0.36,
        2.4,
    )
    for mask, y in ((upper, 31), (pocket, 51)):
        canvas.fold(mask, [(15, y + 1), (30, y), (45, y + 1)], 0.7, 0.7)
        canvas.stroke([(40, y + 0.6), (41, y + 4.4)], STEEL, 0.9)
    canvas.paint(box(26.4, 58, 33.6, 62.4, 0.8), trim, 0.1)
    canvas.gleam(body, [(17, 18), (13, 34), (12.4, 56)], 2.0, 0.22)
    return canvas


def watch(look: Look) -> Canvas:
    """A wrist watch from the front: strap or bracelet, round case, dial with hands."""
    rng = random.Random(look.seed)
    canvas = Canvas(look.background)
    metal = GOLD if look.pattern != "Bracelet" and rng.random() < 0.35 else STEEL
    radius = 15.5 if look.woman else 19.0
    half, band = radius * 0.56, (look.color if look.pattern != "Bracelet" else metal)
    outline: list[Point] = [
        (30 - half * 0.72, 1.6),
        (30 + half * 0.72, 1.6),
        (30 + half, 26),
        (30 + half, 54),
        (30 + half * 0.72, 78.4),
        (30 - half * 0.72, 78.4),
        (30 - half, 54),
        (30 - half, 26),
    ]
    strap = canvas.paint(outline, band, 0.5, 2.2)
    if look.pattern == "Bracelet":
        for i in range(26):
            canvas.fold(strap, [(18, 3 * i + 1.4), (30, 3 * i + 2), (42, 3 * i + 1.4)], 0.5, 0.8)
        for x in (30 - half * 0.33, 30 + half * 0.33):
            canvas.fold(strap, [(x, 0), (x, 80)], 0.4, 0.7)
    else:
        for side in (0.78, -0.78):
            canvas.fold(
                strap,
                [
                    (30 + half * side * 0.8, 2),
                    (30 + half * side, 28),
                    (30 + half * side, 52),
                    (30 + half * side * 0.8, 78),
                ],
                0.4,
                0.6,
            )
        canvas.dots([(30, 64 + 3.6 * i) for i in range(4)], darker(band, 0.55), 0.6)
    canvas.paint(box(30 + radius - 0.6, 38, 30 + radius + 2.2, 42, 0.8), metal, 0.3, 0.6)
    canvas.paint(ellipse(30, 40, radius, radius), metal, 0.5, 1.6)
    canvas.paint(ellipse(30, 40, radius * 0.9, radius * 0.9), darker(metal, 0.35), 0.1)
    dial = canvas.paint(ellipse(30, 40, radius * 0.84, radius * 0.84), look.accent, 0.25, 2.4)
    _clock_face(canvas, contrast(look.accent), radius * 0.84)
    canvas.gleam(dial, [(30 - radius * 0.5, 40 - radius * 0.5), (30 - radius * 0.1, 40 - radius * 0.68)], 2.2, 0.3)
    return canvas


def _clock_face(canvas: Canvas, ink: Color, radius: float) -> None:
    for hour in range(12):
        a = math.tau * hour / 12
        inner = 0.74 if hour % 3 == 0 else 0.82
        ends = [(30 + r * radius * math.sin(a), 40 - r * radius * math.cos(a)) for r in (inner, 0.92)]
        canvas.stroke(ends, ink, 1.0 if hour % 3 == 0 else 0.6)
    for a, length, width in (
        (math.tau * 10.15 / 12, 0.5, 1.1),
        (math.tau * 9 / 60, 0.72, 0.8),
        (math.tau * 36 / 60, 0.6, 0.35),
    ):
        canvas.stroke([(30, 40), (30 + length * radius * math.sin(a), 40 - length * radius * math.cos(a))], ink, width)
    canvas.dots([(30, 40)], ink, 0.9)


def sunglasses(look: Look) -> Canvas:
    """Sunglasses seen from the front, a little from above."""
    rng = random.Random(look.seed)
    canvas, drop = Canvas(look.background), rng.choice((0.0, 2.6))
    for side in (1, -1):
        canvas.stroke(
            [(30 - side * 26, 34), (30 - side * 24, 26), (30 - side * 17, 23.4)], darker(look.color, 0.3), 1.4
        )
    for side in (1, -1):
        rim: list[Point] = [
            (30 - side * u, v)
            for u, v in (
                (3.2, 36),
                (8, 33),
                (20, 31.8),
                (27.6, 33),
                (27.4, 40),
                (23, 48.6 + drop),
                (13, 50 + drop),
                (5.4, 46),
            )
        ]
        canvas.paint(smooth(rim), look.color, 0.35, 1.4)
        cx, cy = 30 - side * 15.4, 40.8 + drop / 3
        lens = canvas.paint(
            smooth([(cx + (x - cx) * 0.84, cy + (y - cy) * 0.8) for x, y in rim]), look.accent, 0.45, 2.4
        )
        canvas.gleam(lens, [(cx - 6, cy - 1), (cx - 1, cy - 5.4)], 2.6, 0.4)
    canvas.stroke([(25.6, 37), (30, 34.8), (34.4, 37)], look.color, 2.0)
    return canvas


def cap(look: Look) -> Canvas:
    """A baseball cap, three quarters from the front."""
    canvas = Canvas(look.background)
    canvas.cast(32, 55, 24, 2.0)
    dome: list[Point] = [
        (6, 47),
        (6, 47),
        (7.6, 33),
        (16, 23),
        (27, 20.4),
        (38, 23.6),
        (45, 33),
        (46.4, 46),
        (46.4, 46),
        (28, 50),
        (14, 50),
    ]
    crown = canvas.paint(smooth(dome), material(look), 0.42, 3.4)
    for line in ([(27, 20.6), (22, 32), (21, 49)], [(27, 20.6), (37, 32), (40, 47)], [(27, 20.6), (13, 32), (9, 48)]):
        canvas.fold(crown, line, 0.7, 0.5)
    canvas.dots([(27, 20.6)], darker(look.color, 0.3), 1.3)
    visor: list[Point] = [
        (17, 48.6),
        (28, 46.4),
        (40, 44.6),
        (47, 43.4),
        (55, 46.4),
        (58.6, 52),
        (55, 54.6),
        (42, 51.6),
        (30, 52),
    ]
    brim = canvas.paint(
        smooth(visor), look.accent if look.pattern == "Colourblocked" else darker(look.color, 0.14), 0.4, 1.6
    )
    canvas.fold(brim, [(24, 51), (40, 48.4), (56, 52.6)], 0.4, 0.6)
    canvas.paint(ellipse(31.4, 36.4, 4.2, 4.6), detail(look), 0.2, 1)
    canvas.paint(ellipse(31.4, 36.4, 2.2, 2.6), look.color, 0.1)
    canvas.gleam(crown, [(13, 31), (20, 25.6), (26, 24)], 2.2, 0.28)
    return canvas


def belt(look: Look) -> Canvas:
    """A belt rolled into a loop, its buckle in front."""
    canvas = Canvas(look.background)
    canvas.cast(30, 52, 26, 2.0)
    canvas.paint(_ring(30, 36, 26, 9, 7.0), darker(look.color, 0.42), 0.35, 1.4)
    front = smooth(
        [
            (4, 36),
            (4, 36),
            (9, 42.6),
            (30, 45.8),
            (51, 42.6),
            (56, 36),
            (56, 36),
            (56, 44),
            (51, 51),
            (30, 54.6),
            (9, 51),
            (4, 44),
        ]
    )
    band = canvas.paint(front, material(look), 0.4, 1.8)
    for lift in (1.3, 7.4):
        canvas.fold(
            band, [(5, 38 + lift), (12, 43 + lift), (30, 45.4 + lift), (48, 43 + lift), (55, 38 + lift)], 0.35, 0.5
        )
    metal = GOLD if random.Random(look.seed).random() < 0.4 else STEEL
    canvas.paint(box(24, 42.8, 37, 57, 1.4), metal, 0.4, 1.0)
    canvas.paint(box(26.2, 45.2, 34.8, 54.6, 0.8), darker(look.color, 0.2), 0.3, 1)
    canvas.stroke([(25.4, 50), (35.4, 50)], metal, 1.1)
    canvas.paint(box(40.4, 43.6, 43.6, 54.6, 0.5), darker(look.color, 0.3), 0.3, 0.8)
    canvas.dots([(14 + 3.2 * i, 47.6 + 0.3 * i) for i in range(3)], darker(look.color, 0.6), 0.55)
    canvas.gleam(band, [(10, 44.6), (18, 47), (24, 48)], 1.2, 0.3)
    return canvas


def _ring(x: float, y: float, rx: float, ry: float, height: float) -> list[Point]:
    return [*ellipse(x, y, rx, ry)[36:], (x + rx, y), *((px, py + height) for px, py in ellipse(x, y, rx, ry)[:35:-1])]


def tie(look: Look) -> Canvas:
    """A neck tie, knotted and laid flat."""
    canvas, cloth = Canvas(look.background), material(look)
    canvas.paint(
        tube([(27, 15), (20, 6), (31, 2.4), (38, 8), (33, 15)], [3.4, 3.6, 3.6, 3.6, 3.4]),
        darker(look.color, 0.25),
        0.4,
        1.2,
    )
    blade: list[Point] = [(27, 17), (33, 17), (38.4, 68), (30, 78), (21.6, 68)]
    mask = canvas.paint(blade, cloth, 0.45, 2.2)
    knot = canvas.paint(
        smooth(
            [
                (24.4, 10.4),
                (24.4, 10.4),
                (30, 11.2),
                (35.6, 10.4),
                (35.6, 10.4),
                (33, 18.4),
                (33, 18.4),
                (27, 18.4),
                (27, 18.4),
            ]
        ),
        cloth,
        0.45,
        1.4,
    )
    canvas.fold(mask, [(28, 19), (29.4, 32)], 0.8, 0.4)
    canvas.gleam(mask, [(28, 26), (26.4, 62)], 1.8, 0.2)
    canvas.gleam(knot, [(27.4, 12.4), (28.8, 16.4)], 1.0, 0.25)
    return canvas


def wallet(look: Look) -> Canvas:
    """A bifold leather wallet, closed, with stitching and a stamped mark."""
    canvas = Canvas(look.background)
    canvas.cast(30.6, 60, 26, 2.2)
    canvas.paint(box(4.6, 22.4, 56.4, 60.4, 2.0), darker(look.color, 0.4), 0.2, 1.5)
    face = canvas.paint(box(3.6, 20.6, 55.6, 58.8, 2.0), material(look), 0.42, 3.0)
    thread = lighter(look.color, 0.35)
    for i in range(24):
        for y in (22.4, 57.0):
            canvas.stroke([(6 + 2.02 * i, y), (7.2 + 2.02 * i, y)], thread, 0.35)
    canvas.fold(face, [(5.2, 20), (5.2, 60)], 0.8, 0.6)
    canvas.paint(box(40, 47, 49.4, 52.4, 0.6), darker(look.color, 0.3), 0.3, 0.8)
    canvas.stroke([(42, 49.7), (47.4, 49.7)], thread, 0.5)
    canvas.gleam(face, [(8, 27), (24, 25), (40, 24.4)], 3.0, 0.18)
    return canvas


GOODS: Mapping[str, Callable[[Look], Canvas]] = {
    "Handbags": handbag,
    "Backpacks": backpack,
    "Watches": watch,
    "Sunglasses": sunglasses,
    "Caps": cap,
    "Belts": belt,
    "Ties": tie,
    "Wallets": wallet,
}
