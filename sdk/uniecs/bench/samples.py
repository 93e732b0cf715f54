"""Samples and what is told of them: percentiles, an interval from the spread between rounds, packed as text."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from uniecs.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float32]

PERCENTILES = (50, 95, 99)
EXTRAS = ("recall", "operations", "bytes")
# Student's t, two-sided 95 %, by degrees of freedom from 1; beyond the last one 1.96.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Case:
    """One thing to measure. `threads` None is the encoder's default, `rate` arrivals a second of an open loop."""

    stage: str
    what: str
    precision: str | None = None
    batch: int = 1
    threads: int | None = None
    concurrency: int = 1
    rate: float | None = None
    ef: int | None = None

    @property
    def key(self) -> str:
        """Names the case in every run of the same settings."""
        parts = [self.stage, self.what, *([] if self.precision is None else [self.precision])]
        for each in fields(self)[len(("stage", "what", "precision")) :]:
            value = getattr(self, each.name)
            parts += [] if value == each.default else [f"{each.name} {value}"]
        return " / ".join(parts)


@dataclass(frozen=True)
class Round:
    """The samples of one case in one round, in ms, and what the process spent on them; None is unknown.

    `given_up` are arrivals of an open loop that were still waiting at its end: it was overloaded.
    """

    ms: Floats
    wall_s: float
    cpu_s: float | None
    rss_bytes: int | None
    given_up: int = 0


@dataclass
class Measurement:
    """A case and its rounds so far; `extra` holds figures that no clock gave, by names of `EXTRAS`."""

    case: Case
    rounds: list[Round] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def ms(self) -> Floats:
        """The samples of all rounds."""
        return np.concatenate([each.ms for each in self.rounds])

    def figures(self) -> dict[str, Any]:
        """Latency (ms), its interval, items a second, CPU ms a call, resident bytes, overload; JSON types."""
        calls, wall = sum(len(each.ms) for each in self.rounds), sum(each.wall_s for each in self.rounds)
        cpu = [each.cpu_s for each in self.rounds if each.cpu_s is not None]
        resident = [each.rss_bytes for each in self.rounds if each.rss_bytes is not None]
        return {
            "calls": calls,
            "ms": percentiles(self.ms),
            "p50_interval_ms": interval([median(each.ms) for each in self.rounds]),
            "per_s": calls * self.case.batch / wall if wall else None,
            "per_s_interval": interval([len(each.ms) * self.case.batch / each.wall_s for each in self.rounds]),
            "cpu_ms": sum(cpu) * 1e3 / calls if len(cpu) == len(self.rounds) else None,
            "rss_bytes": max(resident, default=None),
            "overloaded": any(each.given_up for each in self.rounds),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON types, with the raw samples."""
        packed = [{**asdict(each), "ms": pack(each.ms)} for each in self.rounds]
        return {"key": self.case.key, **asdict(self.case), **self.figures(), **self.extra, "rounds": packed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, figures computed anew; raises `InputError`."""
        try:
            case = Case(**{name: data[name] for name in Case.__dataclass_fields__})
            rounds = [Round(**{**each, "ms": unpack(each["ms"])}) for each in data["rounds"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"a measurement cannot be read: {error!r}; write the results anew") from error
        return cls(case, rounds, {name: data[name] for name in EXTRAS if name in data})


def percentiles(ms: Floats) -> dict[str, float]:
    """p50, p95, p99 and max, each a sample that was seen: the least one that so many per cent do not exceed."""
    found = {f"p{q}": float(np.percentile(ms, q, method="inverted_cdf")) for q in PERCENTILES}
    return {**found, "max": float(ms.max())}


def median(ms: Floats) -> float:
    """The p50 of `percentiles`."""
    return float(np.percentile(ms, 50, method="inverted_cdf"))


def interval(rounds: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of positive figures, one a round, by Student's t on logarithms; None of one round.

    Rounds lie minutes apart, so that what the machine does besides is within the interval.
    """
    if len(rounds) < 2 or min(rounds) <= 0:
        return None
    logs = np.log(rounds)
    t = STUDENT[len(rounds) - 2] if len(rounds) - 2 < len(STUDENT) else 1.96
    half = t * float(logs.std(ddof=1)) / math.sqrt(len(rounds))
    centre = float(logs.mean())
    return math.exp(centre - half), math.exp(centre + half)


def pack(ms: Floats) -> str:
    """Little-endian float32, deflated, base64."""
    return base64.b64encode(zlib.compress(ms.astype("<f4").tobytes(), 9)).decode("ascii")


def unpack(text: str) -> Floats:
    """What `pack` packed; raises `InputError`."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<f4").astype(np.float32)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InputError(f"samples cannot be unpacked: {error}; the results are damaged") from error
