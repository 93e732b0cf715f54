"""Plots as inline SVG: lines on linear or logarithmic axes, and bars. Colours are the page's CSS classes c0 to c7."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44
COLOURS = 8
BAR_HEIGHT, BAR_GAP = 18, 10
MANTISSAS = (1, 2, 5)
FEW_TICKS = 3


@dataclass(frozen=True)
class Series:
    """A line of points (x, y); `notes` are shown on hover, one a point; `dashed` and `dots` are how it is drawn."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    notes: Sequence[str] = ()
    dashed: bool = False
    dots: bool = True


@dataclass(frozen=True)
class Axis:
    """What an axis shows; `ticks` are found where none are given."""

    label: str
    log: bool = False
    ticks: Sequence[float] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bar:
    """A bar of parts (name, width, colour), `text` at its end, a tick at each mark, a dashed one at each floor."""

    name: str
    parts: Sequence[tuple[str, float, int]]
    text: str
    marks: Sequence[tuple[str, float]] = ()
    floors: Sequence[tuple[str, float]] = ()


class _Scale:
    """Values of an axis to places between two pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._log = axis.log
        low, high = min(values) if axis.low is None else axis.low, max(values) if axis.high is None else axis.high
        if axis.log:
            low, high = low / 1.08, high * 1.08
        elif axis.low is None:
            low = min(0.0, low)
        if not axis.log and axis.high is None:
            high *= 1.06
        self._low, self._high = low, high if high > low else low + 1
        self._start, self._end = start, end
        self.ticks = axis.ticks or (log_ticks if axis.log else linear_ticks)(self._low, self._high)

    def __call__(self, value: float) -> float:
        of = math.log if self._log else float
        share = (of(value) - of(self._low)) / (of(self._high) - of(self._low))
        return self._start + share * (self._end - self._start)


def linear_ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, about five."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; over more than three powers these alone, and round values where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = math.log10(high / low) > 3
    found = [mantissa * 10.0**power for power in powers for mantissa in ((1,) if many else MANTISSAS)]
    inside = [each for each in found if low <= each <= high]
    return inside if len(inside) >= FEW_TICKS else linear_ticks(low, high)


def number(value: float) -> str:
    """Three digits, thousands as k and M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A figure with a legend; empty text if no series has a point."""
    series = [each for each in series if each.points]
    if not series:
        return ""
    across = _Scale(x, [px for each in series for px, _ in each.points], LEFT, WIDTH - RIGHT)
    up = _Scale(y, [py for each in series for _, py in each.points], HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, across, up)]
    for each in series:
        places = [(across(px), up(py)) for px, py in each.points]
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
        dashed = ' stroke-dasharray="5 4"' if each.dashed else ""
        parts.append(f'<path class="line c{each.colour % COLOURS}" d="{path}"{dashed}/>')
        notes = each.notes or [f"{number(px)}, {number(py)}" for px, py in each.points]
        for (px, py), note in zip(places, notes, strict=True) if each.dots else ():
            hint = f"<title>{html.escape(f'{each.name}: {note}')}</title>"
            parts.append(
                f'<circle class="dot c{each.colour % COLOURS}" cx="{px:.1f}" cy="{py:.1f}" r="3.4">{hint}</circle>'
            )
    return _figure(title, "".join(parts), HEIGHT, _legend([(each.name, each.colour, each.dashed) for each in series]))


def bar_chart(title: str, bars: Sequence[Bar], label: str) -> str:
    """Horizontal bars of one or several parts; empty text without bars."""
    if not bars:
        return ""
    left = 30 + 6.2 * max(len(bar.name) for bar in bars)
    longest = [max(sum(size for _, size, _ in bar.parts), *(at for _, at in bar.marks), 0) for bar in bars]
    height = TOP + len(bars) * (BAR_HEIGHT + BAR_GAP) + BOTTOM
    width = WIDTH - RIGHT - left
    room = width / max(width - 12 - 7 * max(len(bar.text) for bar in bars), width / 2)  # for the texts behind them
    across = _Scale(Axis(label, low=0, high=max(longest) * room), [], left, WIDTH - RIGHT)
    bottom = height - BOTTOM
    parts = [
        f'<line class="grid" x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="tick" x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>'
        for tick in across.ticks
    ]
    parts += [_bar(bar, across, left, TOP + place * (BAR_HEIGHT + BAR_GAP) + 4) for place, bar in enumerate(bars)]
    parts.append(_label(label, (left + WIDTH - RIGHT) / 2, height - 8))
    names = dict.fromkeys((name, colour, False) for bar in bars for name, _, colour in bar.parts if name)
    return _figure(title, "".join(parts), height, _legend(list(names)) if len(names) > 1 else "")


def _bar(bar: Bar, across: _Scale, left: float, y: float) -> str:
    parts = [f'<text class="name" x="{left - 8:.1f}" y="{y + 13}" text-anchor="end">{html.escape(bar.name)}</text>']
    total = 0.0
    for name, size, colour in bar.parts:
        x, width = across(total), across(total + size) - across(total)
        hint = f"<title>{html.escape(f'{bar.name}, {name}: {number(size)}')}</title>"
        box = f'x="{x:.1f}" y="{y}" width="{max(width, 0.5):.1f}" height="{BAR_HEIGHT}"'
        parts.append(f'<rect class="bar c{colour % COLOURS}" {box}>{hint}</rect>')
        total += size
    for kind, name, at in [*(("floor", *each) for each in bar.floors), *(("mark", *each) for each in bar.marks)]:
        hint = f"<title>{html.escape(f'{name}: {number(at)}')}</title>"
        place = f'x1="{across(at):.1f}" x2="{across(at):.1f}" y1="{y - 3}" y2="{y + 21}"'
        parts.append(f'<line class="{kind}" {place}>{hint}</line>')
    end = max([total, *(at for _, at in bar.marks)])
    parts.append(f'<text class="value" x="{across(end) + 6:.1f}" y="{y + 13}">{html.escape(bar.text)}</text>')
    return "".join(parts)


def _frame(x: Axis, y: Axis, across: _Scale, up: _Scale) -> str:
    bottom, parts = HEIGHT - BOTTOM, list[str]()
    for tick in up.ticks:
        place = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{place + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in across.ticks:
        place = across(tick)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
    parts.append(_label(x.label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8))
    middle = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 13 {middle:.1f})"'
    parts.append(
        f'<text class="label" x="13" y="{middle:.1f}" text-anchor="middle" {turned}>{html.escape(y.label)}</text>'
    )
    return "".join(parts)


def _label(text: str, x: float, y: float) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y}" text-anchor="middle">{html.escape(text)}</text>'


def _legend(entries: Sequence[tuple[str, int, bool]]) -> str:
    items = [
        f'<span><i class="key c{colour % COLOURS}{" dashed" if dashed else ""}"></i>{html.escape(name)}</span>'
        for name, colour, dashed in entries
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def _figure(title: str, drawing: str, height: float, legend: str) -> str:
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg role="img" aria-label="{html.escape(title)}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}">{drawing}</svg>{legend}</figure>'
    )
