"""Changes give way to searches, and only to searches."""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniecs import Product, SearchEngine, pacing
from uniecs.local_index import LocalIndex

FakeEncoder = runpy.run_path(str(Path(__file__).with_name("fake_encoder.py")))["FakeEncoder"]


@pytest.fixture()
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    monkeypatch.setattr(pacing, "_last_search", float("-inf"))
    return taken


def test_pauses_only_while_there_are_searches(pauses: list[float]) -> None:
    items = range(3 * pacing.STRIDE + 1)
    assert list(pacing.paced(items)) == list(items) and not pauses
    pacing.note_search()
    assert list(pacing.paced(items)) == list(items) and pauses == [pacing.PAUSE_S] * 3


def test_a_search_is_soon_past(monkeypatch: pytest.MonkeyPatch) -> None:
    pacing.note_search()
    now = time.monotonic()
    assert pacing.searched_lately()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * pacing.LATELY_S)
    assert not pacing.searched_lately()


def test_a_change_beside_searches_leaves_them_a_cpu(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniecs.local_index.usable_cpus", lambda: 4)
    encoder: Any = FakeEncoder()
    with SearchEngine.create(tmp_path / "i", encoder, views=("text",)) as engine:
        index = engine._index
        assert isinstance(index, LocalIndex) and index._threads() == 4
        engine.add([Product("1", "shirt")])
        engine.search(text="shirt")
        assert index._threads() == 3
        engine.add([Product(str(number), f"shirt {number}") for number in range(2, 40)])
        assert pauses and np.isclose(engine.search(text="shirt")[0].score, 1)
