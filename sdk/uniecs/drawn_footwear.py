"""Shoes drawn as a shop photographs them: from the side or above, on a plain background."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from PIL import ImageChops

from uniecs.drawing import (
    GOLD,
    STEEL,
    Canvas,
    Look,
    Point,
    box,
    darker,
    detail,
    ellipse,
    material,
    mix,
    smooth,
    tube,
)


def sports_shoes(look: Look) -> Canvas:
    """A running shoe from the side: white sole, laces, a swept stripe."""
    canvas, trim = Canvas(look.background), look.accent
    canvas.cast(30, 58, 27, 2.6)
    sole: list[Point] = [
        (3.4, 48),
        (2.6, 55),
        (5.5, 58),
        (30, 57.4),
        (50, 58.2),
        (57.4, 55),
        (57, 50.5),
        (40, 52),
        (20, 51),
    ]
    canvas.paint(smooth(sole), (244, 244, 242), 0.3, 1.2)
    canvas.stroke([(3.6, 56.6), (28, 56.6), (50, 57.3), (57, 54.6)], trim, 1.3)
    upper: list[Point] = [
        (5.6, 30),
        (5.6, 30),
        (4.6, 40),
        (3.4, 51.5),
        (3.4, 51.5),
        (25, 53.4),
        (56.8, 53),
        (56.8, 53),
        (56.4, 47.6),
        (50, 43.4),
    ]
    upper += [(40, 39.4), (32, 33), (26.4, 25.6), (26.4, 25.6), (23.4, 26.4), (19.6, 33.2), (13, 34.4), (9, 30)]
    body = canvas.paint(smooth(upper), look.color, 0.4, 2.6)
    canvas.paint(
        smooth([(8.6, 31.4), (13, 34.6), (19.6, 33.4), (23.4, 27), (25, 30), (20, 37), (12, 37.6), (7.6, 34)]),
        darker(look.color, 0.5),
        0.2,
        1.0,
    )
    toe = canvas.mask(smooth([(43, 55), (44, 46), (49, 42), (60, 44), (60, 56)]))
    canvas.paint(ImageChops.multiply(toe, body), mix(look.color, (128, 128, 128), 0.28), 0.3, 2)
    for i in range(2):
        canvas.stroke([(15.5 + 4 * i, 51.6), (20 + 4 * i, 44.5), (27.5 + 4 * i, 37.5)], trim, 1.8)
    heel = canvas.mask(smooth([(2, 40), (9, 41), (12, 47), (11, 54), (2, 54)]))
    canvas.paint(ImageChops.multiply(heel, body), trim, 0.35, 2)
    for i in range(5):
        x, y = 26.6 + 2.9 * i, 29.6 + 2.7 * i
        canvas.stroke([(x, y), (x - 3.4, y + 3.6)], (250, 250, 248), 1.15)
    canvas.gleam(body, [(34, 38), (42, 42), (50, 46)], 1.6, 0.3)
    return canvas


def formal_shoes(look: Look) -> Canvas:
    """A laced leather shoe from the side, polished."""
    canvas = Canvas(look.background)
    canvas.cast(30, 57, 27, 2.2)
    heel = [(4.2, 51), (4.8, 57.6), (17, 57.6), (17.5, 52)]
    canvas.paint(heel, (36, 28, 26), 0.2, 1)
    canvas.paint(
        smooth(
            [
                (4.6, 51),
                (4.6, 51),
                (4.6, 53.4),
                (4.6, 53.4),
                (20, 54),
                (34, 56.8),
                (52, 56.8),
                (58, 54.4),
                (57, 52),
                (30, 52),
            ]
        ),
        (40, 32, 28),
        0.2,
        1,
    )
    upper: list[Point] = [
        (5.8, 34),
        (5.8, 34),
        (4.6, 42),
        (4.4, 52),
        (4.4, 52),
        (26, 53.8),
        (44, 54.4),
        (57.6, 53),
        (57.6, 53),
    ]
    upper += [(56, 49.6), (48, 46.4), (38, 43), (31, 37.5), (26.4, 32), (26.4, 32), (22, 33.4), (15, 36.4), (9, 35)]
    body = canvas.paint(smooth(upper), look.color, 0.5, 2.6)
    canvas.paint(
        smooth([(8, 35.2), (15, 37), (22.6, 33.8), (24, 35.6), (16, 39.4), (8.6, 38)]), darker(look.color, 0.6), 0.1
    )
    canvas.fold(body, [(27, 54), (30, 47), (37, 42.4)], 0.6, 0.7)
    canvas.fold(body, [(45, 55), (45.4, 50), (48.4, 46)], 0.5, 0.6)
    for i in range(4):
        canvas.stroke([(28 + 2.4 * i, 34.4 + 2.3 * i), (25.4 + 2.4 * i, 37.6 + 2.2 * i)], darker(look.color, 0.55), 0.8)
    canvas.gleam(body, [(40, 46), (47, 48), (53, 50.4)], 1.6, 0.5)
    canvas.gleam(body, [(8, 41), (7.4, 47)], 1.6, 0.4)
    return canvas


def heels(look: Look) -> Canvas:
    """A court shoe on a thin heel, from the side."""
    canvas = Canvas(look.background)
    canvas.cast(44, 63.5, 14, 1.6)
    canvas.cast(7, 63.5, 3, 1.0)
    canvas.paint(
        smooth(
            [
                (4.4, 34),
                (4.4, 34),
                (5.6, 50),
                (6.4, 63.4),
                (6.4, 63.4),
                (8.8, 63.4),
                (8.8, 63.4),
                (9.8, 52),
                (14.5, 41),
                (14.5, 41),
            ]
        ),
        darker(look.color, 0.2),
        0.45,
        1.2,
    )
    canvas.paint(
        smooth([(5, 36), (14, 40), (24, 48), (33, 59), (40, 63.6), (53, 63.8), (58, 62), (50, 60), (36, 54), (20, 38)]),
        darker(look.color, 0.65),
        0.2,
    )
    upper: list[Point] = [
        (4.4, 23),
        (4.4, 23),
        (3.6, 30),
        (4.8, 38),
        (4.8, 38),
        (15, 40.4),
        (25, 48.6),
        (34, 59.4),
        (41, 62.4),
        (53, 62.8),
        (58, 61.2),
    ]
    upper += [(56, 57.4), (49, 53), (42, 48.8), (42, 48.8), (37, 52.4), (29, 48), (20, 37), (10, 27.6)]
    body = canvas.paint(smooth(upper), material(look), 0.42, 2.2)
    canvas.stroke(
        [(4.6, 23.2), (10, 27.8), (20, 37.2), (29, 48.2), (37, 52.6), (42, 49)], darker(look.color, 0.35), 0.6
    )
    canvas.gleam(body, [(44, 54), (50, 57), (55, 60)], 1.5, 0.45)
    canvas.gleam(body, [(7, 29), (8, 35)], 1.4, 0.35)
    if random.Random(look.seed).random() < 0.5:
        canvas.paint(ellipse(43.6, 53.6, 2.4, 1.9, 20), GOLD, 0.25, 0.6)
    return canvas


def sandals(look: Look) -> Canvas:
    """A strapped sandal from the side, on a thick sole."""
    canvas = Canvas(look.background)
    canvas.cast(30, 58, 27, 2.2)
    canvas.paint(
        smooth(
            [
                (3.6, 50),
                (3.2, 56.4),
                (8, 58.2),
                (30, 57.4),
                (52, 58.2),
                (57.4, 55.6),
                (56.4, 52.4),
                (40, 53.4),
                (20, 51.6),
            ]
        ),
        (58, 48, 42),
        0.3,
        1.2,
    )
    canvas.paint(
        smooth([(3.4, 47.6), (3.8, 51.6), (20, 53.2), (40, 54.8), (56.6, 53.6), (57, 50.6), (40, 51.6), (20, 49.4)]),
        (196, 164, 124),
        0.25,
        1.0,
    )
    cloth = material(look)
    bands: list[list[Point]] = [
        [
            (4.4, 51),
            (4.4, 51),
            (4.8, 40),
            (6.6, 31.6),
            (6.6, 31.6),
            (11.4, 32.4),
            (11.4, 32.4),
            (12.6, 41),
            (14.6, 52),
            (14.6, 52),
        ],
        [(7.4, 33.2), (16, 35.4), (25.4, 33), (28.6, 36.6), (17, 40.4), (8.4, 38)],
        [(20.6, 53), (20.6, 53), (24, 43), (24.6, 33.4), (29.6, 36), (31.4, 44), (30.6, 54), (30.6, 54)],
        [(36, 54.4), (36, 54.4), (38.4, 46.6), (44, 42.4), (50.4, 45.6), (54.6, 54), (54.6, 54)],
    ]
    for outline in bands:
        canvas.paint(smooth(outline), cloth, 0.45, 1.6)
    canvas.paint(box(14.6, 34.6, 19.4, 40.6, 0.6), STEEL, 0.25, 0.6)
    canvas.paint(box(15.9, 36, 18.1, 39.2, 0.3), look.color, 0.0)
    canvas.stroke([(40.4, 49), (51.6, 49)], detail(look), 1.0)
    return canvas


def flip_flops(look: Look) -> Canvas:
    """A pair of flip flops from above, one turned against the other."""
    canvas = Canvas(look.background)
    for x, turn in ((17.6, -8.0), (42.4, 8.0)):
        _flip_flop(canvas, look, x, turn)
    return canvas


def _flip_flop(canvas: Canvas, look: Look, x: float, turn: float) -> None:
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))

    def place(points: list[Point], drop: float = 0.0) -> list[Point]:
        return [(x + u * c - v * s, 40 + drop + u * s + v * c) for u, v in points]

    foot: list[Point] = [
        (0, -26),
        (7, -24),
        (9.8, -15),
        (8.2, -2),
        (6.8, 10),
        (7.2, 20),
        (0, 26.4),
        (-7.2, 20),
        (-6.8, 10),
        (-8.2, -2),
        (-9.8, -15),
        (-7, -24),
    ]
    canvas.cast(x + 0.6, 41.4, 10, 27, 0.16)
    canvas.paint(smooth(place(foot, 1.5)), darker(look.accent, 0.45), 0.1)
    bed = canvas.paint(
        smooth(place(foot)),
        mix(look.color, (255, 255, 255), 0.12) if look.pattern == "Solid" else material(look),
        0.3,
        2.0,
    )
    canvas.fold(bed, smooth(place([(u * 0.86, v * 0.93) for u, v in [*foot, foot[0]]]), closed=False), 0.4, 0.5)
    for side in (1, -1):
        strap = place([(0, -14), (4.2 * side, -9.5), (8.2 * side, 4)])
        canvas.fold(bed, [(px + 0.5, py + 1.2) for px, py in strap], 2.4, 0.5)
        canvas.paint(tube(strap, [2.4, 3.2, 3.6]), look.accent, 0.4, 1.0)
    canvas.dots(place([(0, -14.4)]), darker(look.accent, 0.3), 1.4)


FOOTWEAR: Mapping[str, Callable[[Look], Canvas]] = {
    "Sports Shoes": sports_shoes,
    "Formal Shoes": formal_shoes,
    "Heels": heels,
    "Sandals": sandals,
    "Flip Flops": flip_flops,
}
