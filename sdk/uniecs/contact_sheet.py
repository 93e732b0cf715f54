"""The contact sheet of a search: one row a query with its best hits, as a PNG and as a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from uniecs.preprocess import ImageSource

PICTURE_PX = (150, 200)
GAP_PX, QUERY_PX, HEADER_PX, CAPTION_PX = 18, 236, 92, 64
INK, MUTED, ACCENT, RULE = (28, 30, 34), (112, 116, 124), (32, 96, 170), (226, 228, 232)


@dataclass(frozen=True)
class SheetHit:
    """One hit on the sheet."""

    title: str
    score: float
    image: ImageSource | None


@dataclass(frozen=True)
class SheetRow:
    """One query and its hits; `kind` says what was asked with, `note` is a small line below."""

    kind: str
    text: str | None
    image: ImageSource | None
    note: str
    hits: Sequence[SheetHit]


@dataclass(frozen=True)
class Sheet:
    """All that both forms of the sheet show."""

    title: str
    subtitle: str
    rows: Sequence[SheetRow]


def write_png(sheet: Sheet, path: Path) -> None:
    """Write the sheet as one PNG picture; its built-in font has Latin letters only, the page has all."""
    from PIL import Image, ImageDraw

    columns = max((len(row.hits) for row in sheet.rows), default=0)
    width = GAP_PX * 2 + QUERY_PX + columns * (PICTURE_PX[0] + GAP_PX)
    step = PICTURE_PX[1] + CAPTION_PX + GAP_PX
    picture = Image.new("RGB", (max(width, 720), HEADER_PX + step * len(sheet.rows) + GAP_PX), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    _write(draw, (GAP_PX, 20), sheet.title, 26, INK, picture.width - 2 * GAP_PX, 1)
    _write(draw, (GAP_PX, 58), sheet.subtitle, 15, MUTED, picture.width - 2 * GAP_PX, 1)
    for i, row in enumerate(sheet.rows):
        top = HEADER_PX + i * step
        draw.line((GAP_PX, top, picture.width - GAP_PX, top), fill=RULE)
        _draw_row(picture, draw, row, top + 14)
    picture.save(path)


def _draw_row(picture: Image, draw: ImageDraw, row: SheetRow, top: int) -> None:
    _write(draw, (GAP_PX, top), row.kind.upper(), 12, ACCENT, QUERY_PX, 1)
    y = top + 20
    if row.image is not None:
        thumb = thumbnail(row.image, (105, 140))
        _paste(picture, draw, thumb, (GAP_PX, y, 105, 140), ACCENT)
        y += 148
    if row.text is not None:
        y = _write(draw, (GAP_PX, y), f"“{row.text}”", 18, INK, QUERY_PX - 24, 4 if row.image is None else 2)
    _write(draw, (GAP_PX, top + PICTURE_PX[1] + 26), row.note, 12, MUTED, QUERY_PX - 24, 2)
    for i, hit in enumerate(row.hits):
        x = GAP_PX * 2 + QUERY_PX + i * (PICTURE_PX[0] + GAP_PX)
        _paste(picture, draw, thumbnail(hit.image, PICTURE_PX), (x, top, *PICTURE_PX), RULE)
        below = _write(draw, (x, top + PICTURE_PX[1] + 6), hit.title, 12, INK, PICTURE_PX[0], 2)
        _write(draw, (x, below), f"{hit.score:.3f}", 12, MUTED, PICTURE_PX[0], 1)


def _paste(picture: Image, draw: ImageDraw, thumb: Image | None, area: tuple[int, int, int, int], rim: object) -> None:
    x, y, width, height = area
    if thumb is None:
        _write(draw, (x + 10, y + height // 2 - 8), "no picture", 12, MUTED, width - 20, 1)
    else:
        picture.paste(thumb, (x + (width - thumb.width) // 2, y + (height - thumb.height) // 2))
    draw.rectangle((x, y, x + width - 1, y + height - 1), outline=rim)  # type: ignore[arg-type]


def _write(
    draw: ImageDraw, at: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int, lines: int
) -> int:
    """Write `text` wrapped to `width` px and cut after `lines`; returns the y below it."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width or not wrapped[-1]:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], f"{wrapped[lines - 1]} …"]
    x, y = at
    for line in wrapped:
        draw.text((x, y), _fitted(draw, line, font, width), fill=color, font=font)
        y += round(size * 1.3)
    return y


def _fitted(draw: ImageDraw, line: str, font: object, width: int) -> str:
    """`line`, its end cut off where it is wider than `width` px."""
    line = line[:400]
    while len(line) > 1 and draw.textlength(line, font) > width:  # type: ignore[arg-type]
        line = line.removesuffix("…").rstrip()[:-1] + "…"
    return line


def thumbnail(source: ImageSource | None, size: tuple[int, int]) -> Image | None:
    """The picture scaled to fit inside `size` px; None where there is none or it cannot be read."""
    from PIL import Image, ImageOps

    from uniecs.errors import ImageError
    from uniecs.preprocess import open_image

    if source is None:
        return None
    try:
        return ImageOps.contain(open_image(source), size, Image.Resampling.LANCZOS)
    except ImageError:
        return None


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e22; --muted: #667; --page: #fff; --card: #f5f6f8; --rule: #e2e4e8;
  --accent: #2060aa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --muted: #9aa0aa; --page: #15171b; --card: #1f2228;
  --rule: #30343c; --accent: #7fb2ec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 3vw, 3rem); max-width: 92rem; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; letter-spacing: -.01em; }
p { margin: 0; } header p, .note, .score { color: var(--muted); }
section { display: grid; grid-template-columns: 13rem 1fr; gap: 1.5rem; padding: 1.5rem 0;
  border-top: 1px solid var(--rule); } header { padding-bottom: 1.5rem; }
.kind { color: var(--accent); font-size: .72rem; font-weight: 600; letter-spacing: .08em; text-transform: uppercase; }
.text { font-size: 1.15rem; margin: .35rem 0; overflow-wrap: anywhere; } .note { font-size: .8rem; margin-top: .4rem; }
.query img { width: 7.5rem; border-radius: 8px; outline: 2px solid var(--accent); margin-top: .5rem; display: block; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
li { background: var(--card); border-radius: 10px; overflow: hidden; }
li img, .none { display: block; width: 100%; aspect-ratio: 3 / 4; object-fit: contain; background: #fff; }
.none { display: grid; place-items: center; color: #778; background: var(--rule); }
li p { padding: .5rem .7rem 0; font-size: .82rem; overflow-wrap: anywhere; }
li .score { padding: .1rem .7rem .6rem; font-variant-numeric: tabular-nums; }
@media (max-width: 44rem) { section { grid-template-columns: 1fr; } }
"""


def write_html(sheet: Sheet, path: Path) -> None:
    """Write the sheet as one HTML page that needs no other file and no network."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(sheet.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>"
        f"<h1>{html.escape(sheet.title)}</h1><p>{html.escape(sheet.subtitle)}</p></header>\n<main>\n"
    ]
    parts += [_section(row) for row in sheet.rows]
    path.write_text("".join([*parts, "</main>\n</body>\n</html>\n"]), encoding="utf-8")


def _section(row: SheetRow) -> str:
    query = f'<p class="kind">{html.escape(row.kind)}</p>'
    if row.image is not None:
        query += _img(row.image, "the photo searched with")
    if row.text is not None:
        query += f'<p class="text">“{html.escape(row.text)}”</p>'
    hits = "".join(
        f'<li>{_img(hit.image, hit.title)}<p>{html.escape(hit.title)}</p><p class="score">{hit.score:.3f}</p></li>\n'
        for hit in row.hits
    )
    note = f'<p class="note">{html.escape(row.note)}</p>'
    return f'<section>\n<div class="query">{query}{note}</div>\n<ol>\n{hits}</ol>\n</section>\n'


def _img(source: ImageSource | None, alt: str) -> str:
    thumb = thumbnail(source, (240, 320))
    if thumb is None:
        return '<div class="none">no picture</div>'
    data = io.BytesIO()
    thumb.save(data, "JPEG", quality=86)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{encoded}">'
