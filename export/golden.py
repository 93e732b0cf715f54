"""Golden inputs: pictures drawn by integer arithmetic, texts that exercise the tokenizer, all three kinds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uniecs.config import Preprocessing
from uniecs.preprocess import Tokenizer, pixel_values

HEIGHT_PX, WIDTH_PX = 96, 56
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GoldenRow:
    """One row: the number of its picture and its text, None where the modality is absent."""

    picture: int | None
    text: str | None


# Only image, only text, both; texts with accents, an emoji, Chinese, and one longer than any `max_tokens`.
ROWS = (
    GoldenRow(0, None),
    GoldenRow(1, None),
    GoldenRow(2, None),
    GoldenRow(None, "Robe d'été crème brodée, façon crêpe"),
    GoldenRow(None, "Blue running shoes \N{ATHLETIC SHOE} size 42, 30% off!"),
    GoldenRow(None, "black leather shoulder bag with a gold chain " * 100),
    GoldenRow(3, "红色连衣裙 女 夏季"),
    GoldenRow(4, "Men's slim-fit checked cotton shirt"),
    GoldenRow(5, "watch"),
)


def draw_picture(number: int, shade: int | None = None) -> Picture:
    """A striped figure with a disc on white, (96, 56, 3) uint8; integers only: the same bytes everywhere.

    `number`, 0 to 15, chooses the figure, `shade` its colour (None for that of `number`).
    """
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.int64)
    tone = number if shade is None else shade
    color = np.array([(37 * tone + 40) % 200, (91 * tone + 90) % 200, (149 * tone + 20) % 200])
    body = (x >= 8 + number) & (x < 48 - number) & (y >= 10) & (y < 90 - 2 * number)
    stripes = (x * (number % 3) + y * (1 + number % 2)) // (3 + number) % 2 == 0
    disc = (x - 28) ** 2 + (y - 30 - 5 * number) ** 2 < (6 + number) ** 2
    picture = np.full((HEIGHT_PX, WIDTH_PX, 3), 255, np.int64)
    picture[body] = color + (y[body] // 2)[:, None]
    picture[body & stripes] = 250 - color
    picture[disc] = color // 2
    return picture.astype(np.uint8)


def golden_inputs(tokenizer: Tokenizer, preprocessing: Preprocessing) -> dict[str, npt.NDArray[np.generic]]:
    """The inputs in golden.safetensors: images, pixel_values, input_ids, attention_mask, modality_indicator.

    G rows; an absent picture is black, an absent text the ids of the empty string ([CLS] [SEP]).
    """
    black = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    images = np.stack([black if row.picture is None else draw_picture(row.picture) for row in ROWS])
    input_ids, attention_mask = tokenizer.pad(tokenizer.encode([row.text or "" for row in ROWS]))
    present = [[row.picture is not None, row.text is not None] for row in ROWS]
    return {
        "images": images,
        "pixel_values": np.stack([pixel_values(image, preprocessing) for image in images]),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "modality_indicator": np.array(present, np.float32),
    }


def golden_set() -> tuple[list[str], list[Picture]]:
    """64 titles and as many pictures, all different: products among which nearest neighbours are compared."""
    articles = ("shirt", "dress", "running shoes", "shoulder bag", "watch", "kurta", "jeans", "sunglasses")
    looks = ("red cotton", "navy blue", "black leather", "white printed", "green", "brown", "grey", "gold-toned")
    titles = [f"{look.capitalize()} {article}" for article in articles for look in looks]
    return titles, [draw_picture(i // 8, shade=11 * i + 3) for i in range(len(titles))]
