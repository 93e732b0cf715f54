"""Pictures of a model and of its training run, as PNG files.

    python benchmarks/pictures.py tsne MODEL --catalog FILE --out tsne.png
    python benchmarks/pictures.py queries MODEL --catalog FILE --out queries.png
    python benchmarks/pictures.py curves RUN --out curves.png
    python benchmarks/pictures.py sweep FILE.toml --out sweep.png

`tsne` is Figure 5 of the UniECS paper: one map of the image, text and multimodal embeddings of the same products.
`queries` is its Figure 4: products searched by title, by photo and by both, with the best five others. `curves` shows
the losses, their weights and the validation recall of a run, resumed or not. `sweep` is Table 4 and Figure 6 as points:
the variants of a sweep, a point for each seed. MODEL is a packaged name or a bundle folder, RUN the output folder of
`uniecs train`, FILE what `uniecs sweep` takes. Needs `uniecs[bench]`; nothing is shown on a display.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from threadpoolctl import threadpool_limits

import uniecs
from uniecs.contact_sheet import Sheet, SheetHit, SheetRow, write_png
from uniecs.evaluation import TASKS, PairEncoder, embed_all, read_products

Floats = npt.NDArray[np.floating[Any]]
Points = list[tuple[int, float]]
"""The (step, value) points of one curve, by step."""

# The colours of Okabe and Ito, told apart with any colour vision.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, MUTED, FAINT = "#1c1e22", "#5c6068", "#c4c8ce"
MARKERS: Mapping[str, Mapping[str, Any]] = {
    "image": {"marker": "o", "s": 14, "facecolor": BLUE, "linewidth": 0, "alpha": 0.8},
    "text": {"marker": "^", "s": 16, "facecolor": VERMILION, "linewidth": 0, "alpha": 0.8},
    "multimodal": {"marker": "o", "s": 34, "facecolor": "none", "edgecolor": GREEN, "linewidth": 0.9},
}
"""Modality -> its marker; the rings of the last hide no point that lies at the same place."""
CURVES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)

PANELS: Mapping[str, Sequence[str]] = {
    "mean of nine": tuple(TASKS),
    "text to text": ("t>t",),
    "text to image": ("t>v",),
    "image to image": ("v>v",),
    "both to both": ("vt>vt",),
}
NEIGHBOURS, PERPLEXITY, MIN_PRODUCTS = 10, 30, 20
KINDS: Mapping[str, str] = {"text": "title", "image": "photo", "image + text": "photo and title"}
TOP = 5
DPI = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one picture; returns the exit status, 1 after an error shown as one line."""
    options = build_parser().parse_args(argv)
    try:
        options.draw(options)
    except (uniecs.UniecsError, OSError) as error:
        print("pictures: error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"wrote {options.out} ({options.out.stat().st_size / 1000:.0f} kB)")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The pictures as subcommands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="PICTURE", required=True)
    drawings: tuple[tuple[str, Callable[[argparse.Namespace], None], str], ...] = (
        ("tsne", _tsne, "image, text and multimodal embeddings of the same products on one map"),
        ("queries", _queries, "products searched by title, photo and both, with the best five others"),
        ("curves", _curves, "losses, their weights and validation recall of a run"),
        ("sweep", _sweep, "the variants of a sweep, a point for each seed"),
    )
    for name, draw, about in drawings:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(draw=draw)
        command.add_argument("--out", type=_png, required=True, help="the .png to write")
        if name in ("curves", "sweep"):
            command.add_argument("source", type=Path, help="output folder of uniecs train, or the sweep's TOML file")
            continue
        command.add_argument("model", help="packaged name or bundle folder")
        command.add_argument("--catalog", type=Path, required=True, help=".csv, .jsonl or .parquet")
        command.add_argument("--seed", type=int, default=0, help="of the choice of products (0)")
        command.add_argument("--threads", type=int, help="of the encoder; by default the engine's choice")
        default = 1000 if name == "tsne" else 6
        command.add_argument(f"--{'products' if name == 'tsne' else name}", type=int, default=default, dest="count")
    return parser


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: expected a name ending in .png in a folder that exists")
    return path


# --- tsne ---------------------------------------------------------------------------------------------------------


def _tsne(options: argparse.Namespace) -> None:
    products, _ = read_products(options.catalog)
    chosen = sampled(products, options.count, options.seed, MIN_PRODUCTS)
    encoder = uniecs.load(options.model, threads=options.threads)
    views = embed_views(encoder, chosen)
    caption = mixing_caption(modality_mixing(views))
    print(caption)
    title = (
        f"{len(views['image']):,} products of {options.catalog.name}, each embedded three times by {encoder.model_id}"
    )
    save(draw_map(project(views, options.seed), title, caption), options.out)


def sampled(products: Mapping[str, uniecs.Product], count: int, seed: int, at_least: int = 1) -> list[uniecs.Product]:
    """`count` products drawn at random from those with a title and a photo; `InputError` if there are too few."""
    if count < at_least:
        raise uniecs.InputError(f"{count} products were asked for; expected at least {at_least}")
    complete = [each for each in products.values() if each.title is not None and each.image is not None]
    if len(complete) < count:
        raise uniecs.InputError(f"the catalogue has {len(complete)} products with title and photo; expected {count}")
    return [complete[i] for i in np.random.default_rng(seed).permutation(len(complete))[:count]]


def embed_views(encoder: PairEncoder, products: Sequence[uniecs.Product]) -> dict[str, Floats]:
    """(N, D) unit embeddings of each modality, row i of product i; products that fail are left out and told."""
    absent = [None] * len(products)
    titles, photos = [each.title for each in products], [each.image for each in products]
    sides: dict[str, tuple[list[Any], list[Any]]] = {
        "image": (absent, photos),
        "text": (titles, absent),
        "multimodal": (titles, photos),
    }
    views, failed = {}, dict[int, uniecs.UniecsError]()
    for name in MARKERS:
        views[name], errors = embed_all(encoder, *sides[name], name)
        failed.update(errors)
    good = _good(products, failed)
    if len(good) < MIN_PRODUCTS:
        raise uniecs.InputError(f"{len(good)} products could be embedded; expected at least {MIN_PRODUCTS}")
    return {name: rows[good] for name, rows in views.items()}


def _good(products: Sequence[uniecs.Product], failed: Mapping[int, uniecs.UniecsError]) -> list[int]:
    """Positions of the products that could be embedded; the others are told on stderr."""
    for i, error in sorted(failed.items()):
        print(f"left out: product {products[i].id!r}: {error}", file=sys.stderr)
    return [i for i in range(len(products)) if i not in failed]


def modality_mixing(views: Mapping[str, Floats]) -> dict[str, float]:
    """Share of another modality among the 10 nearest neighbours of each modality's points, of other products only.

    0 where the modalities lie apart, `expected_mixing` where a point's place says nothing about its modality. The
    neighbours are those in the embedding space, (N, D) unit rows of each view, not on the map.
    """
    points = np.concatenate(list(views.values()))
    modality, product = np.divmod(np.arange(len(points)), len(points) // len(views))
    # A point and its product's other views may be among the nearest: ask for as many more.
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + len(views)).fit(points).kneighbors(points, return_distance=False)
    others = product[near] != product[:, None]
    counted = others & (others.cumsum(axis=1) <= NEIGHBOURS)
    foreign = (counted & (modality[near] != modality[:, None])).sum(axis=1) / NEIGHBOURS
    return {name: float(foreign[modality == i].mean()) for i, name in enumerate(views)}


def expected_mixing(modalities: int) -> float:
    """What `modality_mixing` gives for mixed embeddings: each modality has an equal part in the neighbours."""
    return 1 - 1 / modalities


def mixing_caption(mixing: Mapping[str, float]) -> str:
    """The mean of `modality_mixing`, its parts, and what they mean, in two lines."""
    parts = ", ".join(f"{name} {share:.2f}" for name, share in mixing.items())
    return (
        f"Modality mixing {np.mean(list(mixing.values())):.2f} ({parts}); 0 if apart, "
        f"{expected_mixing(len(mixing)):.2f} if mixed: the share of another\n"
        f"modality among a point's {NEIGHBOURS} nearest neighbours of other products, in the embedding space"
    )


def project(views: Mapping[str, Floats], seed: int) -> dict[str, Floats]:
    """(N, 2) t-SNE coordinates of each modality's points, all on one map; the same for the same seed."""
    points = np.concatenate(list(views.values()))
    tsne = TSNE(perplexity=PERPLEXITY, init="pca", random_state=seed)
    # With several threads the gradient's sums would differ in their last bits, and the map with them.
    with threadpool_limits(1):
        flat = tsne.fit_transform(points)
    return dict(zip(views, np.split(flat, len(views)), strict=True))


def draw_map(flat: Mapping[str, Floats], title: str, caption: str) -> Figure:
    """The points of each modality, (N, 2) coordinates that have no unit, in its colour and marker."""
    figure = Figure(figsize=(8, 8.4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in flat.items():
        axes.scatter(*points.T, **MARKERS[name], label=name)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[:].set_color(FAINT)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, fontsize=12, markerscale=1.8)
    figure.supxlabel(caption, fontsize=10, color=MUTED)
    return figure


# --- queries ------------------------------------------------------------------------------------------------------


def _queries(options: argparse.Namespace) -> None:
    products, _ = read_products(options.catalog)
    asked = sampled(products, options.count, options.seed)
    encoder = uniecs.load(options.model, threads=options.threads)
    write_png(query_sheet(encoder, list(products.values()), asked, options.catalog.name), options.out)
    shrink(options.out)


def query_sheet(
    encoder: PairEncoder, products: Sequence[uniecs.Product], asked: Sequence[uniecs.Product], source: str
) -> Sheet:
    """One row for each product of `asked`, which is itself no candidate: a third by text, by image, by both."""
    candidates, errors = embed_all(encoder, [p.title for p in products], [p.image for p in products], "products")
    good = _good(products, errors)
    products, candidates = [products[i] for i in good], candidates[good]
    kinds = [list(KINDS)[i * len(KINDS) // len(asked)] for i in range(len(asked))]
    texts = [each.title if "text" in kind else None for kind, each in zip(kinds, asked, strict=True)]
    images = [each.image if "image" in kind else None for kind, each in zip(kinds, asked, strict=True)]
    queries, errors = embed_all(encoder, texts, images, "queries")
    rows = []
    for i in _good(asked, errors):
        hits = best(queries[i], candidates, products, asked[i].id)
        rows.append(SheetRow(kinds[i], texts[i], images[i], f"{KINDS[kinds[i]]} of {asked[i].id}", hits))
    subtitle = (
        f"{len(products):,} products of {source}, each query's own left out; {encoder.model_id}, cosine similarities"
    )
    return Sheet("Queries and their top five", subtitle, rows)


def best(query: Floats, candidates: Floats, products: Sequence[uniecs.Product], own: str) -> list[SheetHit]:
    """The five products whose embeddings, the rows of `candidates` (N, D), are nearest to `query` (D,)."""
    scores = candidates @ query
    places = [i for i in np.argsort(-scores)[: TOP + 1] if products[i].id != own][:TOP]
    return [SheetHit(products[i].title or products[i].id, float(scores[i]), products[i].image) for i in places]


# --- curves -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunScalars:
    """The curves of a run by TensorBoard tag, and the first steps of its resumed parts."""

    points: Mapping[str, Points]
    resumed: Sequence[int]

    def group(self, prefix: str) -> dict[str, Points]:
        """The curves whose tag is `prefix`/name, by name."""
        return {tag.partition("/")[2]: points for tag, points in self.points.items() if tag.startswith(f"{prefix}/")}


def _curves(options: argparse.Namespace) -> None:
    save(draw_curves(read_scalars(options.source), options.source.resolve().name), options.out)


def read_scalars(run: Path) -> RunScalars:
    """All scalars of a run's `tensorboard` folder; a resumed part replaces what came after its first step.

    The parts are joined here, not by TensorBoard: that would also drop the step at which the last checkpoint was
    saved, and the validation made there. Raises `InputError` if there is no run or it has logged nothing.
    """
    files = sorted((run / "tensorboard").glob("events.out.tfevents.*"))
    if not files:
        raise uniecs.InputError(f"{run} has no tensorboard/events.*; expected the output folder of uniecs train")
    points: dict[str, Points] = {}
    starts: list[int] = []
    for file in files:
        part = _read_events(file)
        if not part:
            continue
        start = min(curve[0][0] for curve in part.values())
        points = {tag: [point for point in curve if point[0] < start] for tag, curve in points.items()}
        for tag, curve in part.items():
            points[tag] = points.get(tag, []) + curve
        starts = [*(step for step in starts if step < start), start]
    if not any(tag.startswith("loss/") for tag in points):
        raise uniecs.InputError(f"{run} has logged no loss yet; wait for its first steps")
    return RunScalars(points, starts[1:])


def _read_events(file: Path) -> dict[str, Points]:
    """Every scalar of one event file, none left out by sampling."""
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def smoothed(values: Floats, window: int) -> Floats:
    """Mean over `window` neighbouring values, fewer at the ends: (n,) to (n,)."""
    kernel = np.ones(min(window, len(values)))
    sums = np.convolve(values, kernel, "same")
    return sums / np.convolve(np.ones(len(values)), kernel, "same")


def draw_curves(scalars: RunScalars, name: str) -> Figure:
    """Losses and weights, smoothed before their faint raw values, and the mean validation R@10 if there is one."""
    losses, weights, tasks = (scalars.group(prefix) for prefix in ("loss", "lambda", "validation_recall_at_10"))
    heights = [3, 1.5, 2][: 3 if tasks else 2]
    figure = Figure(figsize=(9, 1.6 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    window = max(1, len(next(iter(losses.values()))) // 50)
    lowest = _draw_group(panels[0], losses, window)
    # A few single steps are far lower: the raw values may leave the panel.
    panels[0].set(
        yscale="log",
        ylim=(max(lowest, 1e-8) / 3, None),
        title=f"{name}: the losses (mean over {window} steps; faint: each step)",
    )
    _draw_group(panels[1], weights, window)
    equal = len({value for points in weights.values() for _, value in points}) == 1
    panels[1].set(ylim=(0, None), title="their weights λ" + (", all equal and constant in this run" if equal else ""))
    if tasks:
        _draw_recall(panels[2], tasks)
    for axes in panels:
        _dress(axes, scalars.resumed)
    panels[-1].set_xlabel("step", color=MUTED)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _draw_group(axes: Axes, curves: Mapping[str, Points], window: int) -> float:
    """Draw each curve, raw and smoothed; returns the lowest smoothed value."""
    lowest = float("inf")
    for i, (name, points) in enumerate(curves.items()):
        steps, values = np.array(points).T
        color = CURVES[i % len(CURVES)]
        axes.plot(steps, values, color=color, alpha=0.18, lw=0.6)
        mean = smoothed(values, window)
        axes.plot(steps, mean, color=color, lw=1.8, label=name)
        lowest = min(lowest, float(mean.min()))
    return lowest


def _draw_recall(axes: Axes, tasks: Mapping[str, Points]) -> None:
    for points in tasks.values():
        axes.plot(*zip(*points, strict=True), color=FAINT, lw=1)
    values = [dict(points) for points in tasks.values()]
    steps = sorted(set(values[0]).intersection(*values))
    means = [float(np.mean([each[step] for each in values])) for step in steps]
    axes.plot(steps, means, color=INK, lw=1.8, marker="o", ms=4)
    axes.annotate(f"{means[-1]:.3f}", (steps[-1], means[-1]), (0, 8), textcoords="offset points", ha="center")
    axes.set(title=f"validation R@10: mean of {len(tasks)} tasks (faint: each task)")


def _dress(axes: Axes, resumed: Sequence[int]) -> None:
    for i, step in enumerate(resumed):
        axes.axvline(step, color=MUTED, lw=0.8, ls=":", label="resumed" if i == 0 else None)
    axes.set_title(axes.get_title(), loc="left", fontsize=11, color=INK)
    axes.set_title("")
    axes.grid(axis="y", color=FAINT, lw=0.5, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED)


# --- sweep --------------------------------------------------------------------------------------------------------


def _sweep(options: argparse.Namespace) -> None:
    from uniecs.trainer.sweep import finished, load_sweep

    sweep = load_sweep(options.source)
    results = finished(sweep)
    if not results:
        raise uniecs.InputError(f"{sweep.results} has no finished run of {options.source}; run uniecs sweep first")
    save(draw_sweep(results), options.out)


def draw_sweep(results: Sequence[Mapping[str, Any]]) -> Figure:
    """R@10 of some tasks and the mean of the nine by variant: a ring for each seed, a bar at their mean."""
    from uniecs.trainer.sweep import mean_recall  # torch, which the other pictures do without

    variants = list(dict.fromkeys(each["variant"] for each in results))[::-1]
    figure = Figure(figsize=(11, 1.2 + 0.34 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (title, tasks) in zip(panels, PANELS.items(), strict=True):
        for row, variant in enumerate(variants):
            runs = [each for each in results if each["variant"] == variant]
            values = [mean_recall(run, tasks) for run in runs]
            axes.scatter(values, [row] * len(values), facecolor="none", edgecolor=BLUE, s=26, linewidth=0.9)
            axes.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=VERMILION, lw=2)
        axes.grid(axis="both", color=FAINT, lw=0.5, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
    panels[0].set_yticks(range(len(variants)), variants, color=INK)
    figure.supxlabel("Recall@10; a ring for each seed, a bar at their mean", fontsize=10, color=MUTED)
    return figure


# --- files --------------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a small PNG, without the name and version of what wrote it."""
    figure.savefig(path, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    shrink(path)


def shrink(path: Path) -> None:
    """Write a PNG again with a palette of 256 colours: about a third of its bytes."""
    with Image.open(path) as picture:
        # By coverage, then refined: of Pillow's ways the one with the smallest error at the rarest colours.
        small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)
    small.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
