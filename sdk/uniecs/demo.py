"""`uniecs demo`: the main job on drawn products, or on one's own: index a catalogue, search it, show the hits."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniecs.catalog import Product, Rejected, read_catalog
from uniecs.engine import Hit, SearchEngine
from uniecs.errors import CatalogError, InputError

if TYPE_CHECKING:
    from uniecs.preprocess import ImageSource

HITS = 6
MARK = "demo.json"
SAMPLE = 9
SHOWN_REJECTED = 10


@dataclass(frozen=True)
class DemoQuery:
    """A search of the demo: a text, an image or both, perhaps filtered; `about` says what the image is."""

    text: str | None = None
    image: ImageSource | None = None
    where: Mapping[str, object] | None = None
    about: str = ""

    @property
    def kind(self) -> str:
        """What was searched with: "text", "image" or "image + text"."""
        return " + ".join(name for name, value in (("image", self.image), ("text", self.text)) if value is not None)


@dataclass(frozen=True)
class Answer:
    """The hits of one query and the time of its two stages, in ms, of one call of `SearchEngine.search`."""

    query: DemoQuery
    hits: tuple[Hit, ...]
    encode_ms: float
    search_ms: float


@dataclass(frozen=True)
class DemoResult:
    """What a demo did: `stages_ms` are whole stages in order; the sheet's files are `png` and `html`."""

    model_id: str
    runs_on: str
    products: int
    rejected: tuple[Rejected, ...]
    answers: tuple[Answer, ...]
    stages_ms: Mapping[str, float]
    index: Path
    png: Path
    html: Path

    @property
    def queries(self) -> tuple[DemoQuery, ...]:
        """The searches, in order."""
        return tuple(answer.query for answer in self.answers)

    @property
    def hits(self) -> tuple[tuple[Hit, ...], ...]:
        """The hits of each search, best first."""
        return tuple(answer.hits for answer in self.answers)


@dataclass
class _Timed:
    """An encoder that notes how long its last call took, so that encoding and look-up are told apart."""

    encoder: Any
    last_ms: float = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.encoder.encode(*args, **options)
        finally:
            self.last_ms = (time.perf_counter() - start) * 1000


@dataclass
class _Stages:
    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.ms[name] = (time.perf_counter() - start) * 1000


def run(
    out: Path, catalog: Path | None, model: str = "mini", *, load: Callable[[str], Any] | None = None
) -> DemoResult:
    """Index the drawn catalogue, or the file `catalog`, into out/demo.uniecs, search it, write the sheet.

    `load` makes the encoder of `model` (by default `uniecs.encoder.load`). What an earlier demo left in `out`
    is replaced. Raises `InputError` if `out` holds an index that no demo made, `CatalogError` for a catalogue
    that cannot be read or has no usable product, and what `uniecs.load` raises.
    """
    from uniecs import encoder as encoders

    stages = _Stages()
    with stages.stage("load the model"):
        encoder = _Timed((load or encoders.load)(model))
    index = _prepare(out)
    if catalog is None:
        with stages.stage("draw the catalogue"):
            source, queries = _draw(out)
    else:
        source = catalog
    # No query cache: the times are those of a query that is new.
    with SearchEngine.create(index, encoder, query_cache=0) as engine:  # type: ignore[arg-type]
        with stages.stage("index the products"):
            report = engine.add(source)
            engine.save()
        if not len(engine):
            raise CatalogError(f"{source} has no product that can be indexed{_first_reason(report.rejected)}")
        if catalog is not None:
            queries = _own_queries(source, {each.row for each in report.rejected})
        with stages.stage("first queries (warm-up)"):
            for query in {query.kind: query for query in queries}.values():
                engine.search(query.text, query.image, HITS)
        answers = tuple(_answer(engine, encoder, query) for query in queries)
        products = len(engine)
    runs_on = f"{encoder.backend}, {encoder.device}, {encoder.precision}"
    png, html = out / "contact-sheet.png", out / "contact-sheet.html"
    result = DemoResult(
        encoder.model_id, runs_on, products, tuple(report.rejected), answers, stages.ms, index, png, html
    )
    with stages.stage("write the contact sheet"):
        _write_sheet(result, source)
    return result


def _prepare(out: Path) -> Path:
    """Make `out` ready and clear an earlier demo's index, known by the mark a demo leaves; returns its path."""
    index, mark = out / "demo.uniecs", out / MARK
    try:
        out.mkdir(parents=True, exist_ok=True)
        if index.is_symlink() or index.exists():
            if index.is_symlink() or not index.is_dir() or not mark.is_file():
                raise InputError(f"{index} was not made by uniecs demo; move it away or choose another --out")
            shutil.rmtree(index)
        mark.write_text(json.dumps({"made_by": "uniecs demo", "index": index.name}) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another --out") from error
    return index


def _draw(out: Path) -> tuple[Path, list[DemoQuery]]:
    from uniecs.drawn_catalog import drawn_products, varied, write_catalog

    products = drawn_products()
    catalog = write_catalog(out, products)
    folder = out / "queries"
    folder.mkdir(exist_ok=True)

    def photo(article: str, color: str, pattern: str = "Solid") -> Path:
        """A new photo of something like the first product of that kind; it is not in the catalogue."""
        wanted = {"article_type": article, "colour": color, "pattern": pattern}
        product = next(each for each in products if wanted.items() <= each.attributes.items())
        path = folder / f"{article}-{color}-{pattern}.png".lower().replace(" ", "-")
        varied(product).save(path)
        return path

    new = "a new photo, not in the catalogue"
    return catalog, [
        DemoQuery("red dress for women"),
        DemoQuery("men's navy blue checked shirt"),
        DemoQuery("brown leather handbag"),
        DemoQuery("yellow backpack"),
        DemoQuery(image=photo("Sports Shoes", "Blue"), about=new),
        DemoQuery(image=photo("Tshirts", "Green", "Striped"), about=new),
        DemoQuery(image=photo("Heels", "Red"), about=new),
        DemoQuery(image=photo("Watches", "Brown"), about=new),
        DemoQuery("blue dress", photo("Dresses", "Red"), about=new),
        DemoQuery("red handbag", photo("Handbags", "Black"), about=new),
        DemoQuery("black sports shoes", photo("Sports Shoes", "White"), about=new),
        DemoQuery("casual shirt", where={"gender": "Women", "price": (None, 1200)}),
    ]


def _own_queries(source: Path, left_out: set[int]) -> list[DemoQuery]:
    """Queries made of a few products of the catalogue itself: their titles, their photos, both."""
    rng, sample, seen = random.Random(0), list[Product](), 0
    for row, item in enumerate(read_catalog(source)):
        if isinstance(item, Rejected) or row in left_out:
            continue
        seen += 1
        place = len(sample) if len(sample) < SAMPLE else rng.randrange(seen)
        if place < SAMPLE:
            sample[place : place + 1] = [item]
    texts = [each for each in sample if each.title is not None]
    images = [each for each in sample if each.image is not None]
    both = [each for each in texts if each.image is not None]
    queries = [DemoQuery(each.title, about=f"the title of {each.id}") for each in texts[:3]]
    queries += [DemoQuery(image=each.image, about=f"the photo of {each.id}") for each in images[-3:]]
    queries += [DemoQuery(each.title, each.image, about=f"photo and title of {each.id}") for each in both[3:6]]
    for each in texts[-1:]:
        words = {key: value for key, value in each.attributes.items() if isinstance(value, str)}
        for key, value in list(words.items())[:1]:
            queries.append(DemoQuery(each.title, where={key: value}, about=f"the title of {each.id}"))
    return queries


def _answer(engine: SearchEngine, encoder: _Timed, query: DemoQuery) -> Answer:
    start = time.perf_counter()
    hits = engine.search(query.text, query.image, HITS, where=query.where)
    total_ms = (time.perf_counter() - start) * 1000
    return Answer(query, tuple(hits), encoder.last_ms, total_ms - encoder.last_ms)


def _write_sheet(result: DemoResult, source: Path) -> None:
    from uniecs.contact_sheet import Sheet, SheetHit, SheetRow, write_html, write_png

    images = _images(source, {hit.id for hits in result.hits for hit in hits}, {each.row for each in result.rejected})
    rows = [
        SheetRow(
            answer.query.kind,
            answer.query.text,
            answer.query.image,
            _note(answer),
            [SheetHit(hit.product.title or hit.id, hit.score, images.get(hit.id)) for hit in answer.hits],
        )
        for answer in result.answers
    ]
    subtitle = f"{result.products:,} products, model {result.model_id}; below each hit its cosine similarity"
    sheet = Sheet("uniecs demo: search by text, by image, by both", subtitle, rows)
    write_png(sheet, result.png)
    write_html(sheet, result.html)


def _images(source: Path, ids: set[str], left_out: set[int]) -> dict[str, ImageSource]:
    """The pictures of a few products: an index keeps only paths, so the catalogue is read once more."""
    return {
        item.id: item.image
        for row, item in enumerate(read_catalog(source))
        if isinstance(item, Product) and row not in left_out and item.id in ids and item.image is not None
    }


def _note(answer: Answer) -> str:
    parts = [answer.query.about] if answer.query.about else []
    if answer.query.where:
        parts.append(f"where {_conditions(answer.query.where)}")
    return "; ".join([*parts, f"encode {answer.encode_ms:.1f} ms, search {answer.search_ms:.2f} ms"])


def _conditions(where: Mapping[str, object]) -> str:
    parts = []
    for key, value in where.items():
        if isinstance(value, tuple):
            low, high = value
            parts.append(
                " ".join(
                    [*([f"{low} <="] if low is not None else []), key, *([f"<= {high}"] if high is not None else [])]
                )
            )
        else:
            parts.append(f"{key} = {value}")
    return " and ".join(parts)


def _first_reason(rejected: Sequence[Rejected]) -> str:
    return f"; row {rejected[0].row}: {rejected[0].error}" if rejected else ": it is empty"


def print_report(result: DemoResult) -> None:
    """Print the hits with their scores, the rejected rows, the time of each stage and where the sheet is."""
    print(f"{result.products:,} products indexed with {result.model_id} ({result.runs_on})")
    if result.rejected:
        print(f"{len(result.rejected):,} rows rejected:")
        for each in result.rejected[:SHOWN_REJECTED]:
            print(f"  row {each.row}, id {each.id}: {each.error}")
        if len(result.rejected) > SHOWN_REJECTED:
            print(f"  and {len(result.rejected) - SHOWN_REJECTED:,} more")
    for answer in result.answers:
        asked = f" {answer.query.text!r}" if answer.query.text is not None else ""
        print(f"\n{answer.query.kind}:{asked} ({_note(answer)})")
        for hit in answer.hits:
            print(f"  {hit.score:6.3f}  {hit.product.title or hit.id}")
    print("\nTime on this machine, each measured once:")
    for name, ms in result.stages_ms.items():
        print(f"  {name:<26}{ms:>10,.0f} ms")
    if result.answers:
        encode, search = ([getattr(each, name) for each in result.answers] for name in ("encode_ms", "search_ms"))
        print(f"  a query, encoded          {min(encode):>10.1f} to {max(encode):.1f} ms (photo or text to vector)")
        print(f"  a query, looked up        {min(search):>10.2f} to {max(search):.2f} ms (index, filter and products)")
    print("Scores are cosine similarities, to compare within one query, not between queries.")
    print(f"\nContact sheet: {result.html}\n               {result.png}\nIndex:         {result.index}")
