"""The demo's catalogue: some three hundred invented products, described here and drawn by code; deterministic."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from uniecs.drawing import Color, Look, darker, lighter, mix
from uniecs.drawn_footwear import FOOTWEAR
from uniecs.drawn_garments import GARMENTS
from uniecs.drawn_goods import GOODS
from uniecs.progress import progress_bar

COLORS: dict[str, Color] = {
    "Black": (36, 36, 40),
    "White": (244, 244, 241),
    "Red": (200, 34, 46),
    "Navy Blue": (32, 42, 86),
    "Blue": (48, 112, 194),
    "Green": (44, 130, 74),
    "Yellow": (242, 198, 50),
    "Pink": (238, 124, 164),
    "Purple": (114, 66, 144),
    "Grey": (136, 140, 146),
    "Brown": (112, 72, 46),
    "Beige": (216, 194, 160),
    "Orange": (234, 118, 40),
    "Maroon": (112, 26, 44),
}
BRANDS = ("Aster", "Brindle", "Corvane", "Dunmore", "Elowen", "Fennick", "Garrow", "Halden", "Ivarra", "Juniva")
BACKGROUNDS: tuple[Color, ...] = ((255, 255, 255), (255, 255, 255), (255, 255, 255), (248, 248, 246))
LENSES: tuple[Color, ...] = ((40, 40, 46), (70, 50, 38), (48, 58, 76), (58, 66, 58))
DIALS: tuple[Color, ...] = ((246, 246, 242), (34, 34, 40), (36, 52, 96), (236, 224, 200))

PAINTERS = {**GARMENTS, **FOOTWEAR, **GOODS}

ALL = tuple(COLORS)
BRIGHT = ("Red", "Black", "Blue", "Yellow", "Pink", "White", "Green", "Purple", "Orange", "Navy Blue", "Maroon")
LEATHER = ("Black", "Brown", "Red", "Beige", "White", "Blue", "Pink", "Maroon", "Green", "Grey")
SOBER = ("Black", "Brown", "Grey", "Navy Blue", "Beige", "Maroon")


@dataclass(frozen=True)
class _Line:
    """One kind of article in the shop: what it is called, in which looks it comes, what it costs."""

    article: str
    noun: str
    category: str
    genders: tuple[str, ...]
    colors: tuple[str, ...]
    patterns: tuple[str, ...]
    prices: tuple[int, int]
    count: int = 13


MEN, WOMEN, BOTH, UNISEX = ("Men",), ("Women",), ("Men", "Women"), ("Unisex",)
LINES = (
    _Line("Tshirts", "T-shirt", "Apparel", BOTH, ALL, ("Solid", "Striped", "Printed", "Polka Dot"), (299, 999), 24),
    _Line("Shirts", "Shirt", "Apparel", BOTH, ALL, ("Checked", "Solid", "Pinstriped", "Checked"), (699, 1899), 24),
    _Line("Dresses", "Dress", "Apparel", WOMEN, BRIGHT, ("Solid", "Polka Dot", "Floral"), (899, 2999), 20),
    _Line("Kurtas", "Kurta", "Apparel", BOTH, ALL, ("Floral", "Solid", "Solid", "Striped"), (499, 1499), 18),
    _Line("Jackets", "Jacket", "Apparel", BOTH, (*SOBER, "Red", "Blue", "Green"), ("Solid", "Solid"), (1299, 3999), 14),
    _Line("Jeans", "Jeans", "Apparel", BOTH, ("Blue", "Navy Blue", "Black", "Grey"), ("Denim",), (999, 2499), 8),
    _Line("Trousers", "Trousers", "Apparel", MEN, SOBER, ("Solid", "Pinstriped"), (899, 1999), 10),
    _Line("Shorts", "Shorts", "Apparel", BOTH, ALL, ("Solid", "Checked", "Striped"), (399, 1199), 14),
    _Line("Skirts", "Skirt", "Apparel", WOMEN, BRIGHT, ("Solid", "Floral", "Checked"), (599, 1599), 14),
    _Line("Sports Shoes", "Sports Shoes", "Footwear", BOTH, ALL[:10], ("Solid",), (1499, 4999), 18),
    _Line(
        "Formal Shoes",
        "Formal Shoes",
        "Footwear",
        MEN,
        ("Black", "Brown", "Maroon", "Beige"),
        ("Solid",),
        (1299, 3499),
        6,
    ),
    _Line("Heels", "Heels", "Footwear", WOMEN, LEATHER, ("Solid", "Solid", "Polka Dot"), (999, 2799), 14),
    _Line("Sandals", "Sandals", "Footwear", BOTH, LEATHER, ("Solid",), (599, 1999), 12),
    _Line("Flip Flops", "Flip Flops", "Footwear", BOTH, BRIGHT, ("Solid", "Striped", "Solid"), (199, 799), 14),
    _Line(
        "Handbags", "Handbag", "Accessories", WOMEN, LEATHER, ("Solid", "Solid", "Checked", "Floral"), (799, 3499), 20
    ),
    _Line("Backpacks", "Backpack", "Accessories", UNISEX, ALL, ("Solid", "Colourblocked"), (699, 2499), 16),
    _Line("Watches", "Watch", "Accessories", BOTH, LEATHER, ("Solid", "Solid", "Bracelet"), (1299, 6999), 16),
    _Line(
        "Sunglasses",
        "Sunglasses",
        "Accessories",
        BOTH,
        ("Black", "Brown", "Red", "White", "Blue"),
        ("Solid",),
        (499, 2999),
        10,
    ),
    _Line("Caps", "Cap", "Accessories", UNISEX, BRIGHT, ("Solid", "Colourblocked"), (199, 699), 12),
    _Line("Belts", "Belt", "Accessories", BOTH, LEATHER[:6], ("Solid",), (299, 1299), 10),
    _Line("Ties", "Tie", "Accessories", MEN, BRIGHT, ("Striped", "Solid", "Polka Dot"), (299, 999), 12),
    _Line("Wallets", "Wallet", "Accessories", BOTH, (*SOBER, "Red"), ("Solid",), (399, 1499), 8),
)


@dataclass(frozen=True)
class DrawnProduct:
    """An invented product: what the shop says of it and how it is drawn."""

    id: str
    title: str
    attributes: dict[str, str | int]
    look: Look


def draw(look: Look) -> Image.Image:
    """The product picture of a look: 240x320 RGB."""
    return PAINTERS[look.article](look).finished(look.flip, look.zoom)


def drawn_products() -> list[DrawnProduct]:
    """The whole catalogue, the same on every machine and every call."""
    products = []
    for number, line in enumerate(LINES):
        rng = random.Random(1000 + number)
        products += [_product(line, i, 1000 + 40 * number + i, rng) for i in range(line.count)]
    return products


def _product(line: _Line, i: int, number: int, rng: random.Random) -> DrawnProduct:
    # Colours go round in order and patterns shift by one each round, so that few looks come twice.
    rounds, place = divmod(i, len(line.colors))
    color = line.colors[place]
    pattern = line.patterns[(place + rounds) % len(line.patterns)]
    gender = line.genders[(place // 2 + rounds) % len(line.genders)]
    brand = rng.choice(BRANDS)
    if line.article == "Watches" and pattern == "Bracelet":
        color = "Steel"
    words = "" if pattern in ("Solid", "Denim", "Bracelet", "Colourblocked") else f"{pattern} "
    attributes: dict[str, str | int] = {
        "article_type": line.article,
        "category": line.category,
        "colour": color,
        "gender": gender,
        "brand": brand,
        "pattern": pattern,
        "price": rng.randrange(line.prices[0], line.prices[1] + 1, 100),
    }
    shade = _shade(COLORS.get(color, (188, 192, 198)), rng)
    look = Look(
        line.article,
        shade,
        _accent(line.article, shade, rng),
        pattern,
        woman=gender == "Women",
        seed=number,
        background=rng.choice(BACKGROUNDS),
        flip=rng.random() < 0.3,
        zoom=rng.choice((1.0, 1.0, 0.95)),
    )
    return DrawnProduct(str(number), f"{brand} {gender} {color} {words}{line.noun}", attributes, look)


def _shade(color: Color, rng: random.Random) -> Color:
    return lighter(color, rng.uniform(0, 0.06)) if rng.random() < 0.5 else darker(color, rng.uniform(0, 0.1))


def _accent(article: str, color: Color, rng: random.Random) -> Color:
    """The second colour: lens, dial, trim or the pattern's ink, always one that shows on `color`."""
    if article == "Sunglasses":
        return rng.choice(LENSES)
    if article == "Watches":
        return rng.choice(DIALS)
    far = [each for each in COLORS.values() if sum(abs(a - b) for a, b in zip(each, color, strict=True)) > 260]
    neutral = [each for each in far if max(each) - min(each) < 30]
    return rng.choice(neutral or far) if rng.random() < 0.7 else rng.choice(far)


def varied(product: DrawnProduct) -> Image.Image:
    """Another photo of a very similar product: mirrored, scaled, another shade, other details."""
    look = product.look
    return draw(
        replace(
            look,
            color=mix(look.color, (150, 120, 130), 0.07),
            flip=not look.flip,
            zoom=0.9,
            seed=look.seed + 500,
            background=(250, 250, 250),
        )
    )


def write_catalog(folder: Path, products: Sequence[DrawnProduct]) -> Path:
    """Draw the products into folder/photos and list them in folder/catalog.jsonl, whose path is returned."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = []
    for product in progress_bar(products, desc="draw", unit="product"):
        draw(product.look).save(photos / f"{product.id}.png")
        row = {"id": product.id, "title": product.title, "image": f"photos/{product.id}.png", **product.attributes}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    catalog = folder / "catalog.jsonl"
    catalog.write_text("".join(rows), encoding="utf-8")
    return catalog
