"""The README's figures are those recorded in the shipped bundle, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from uniecs.bundle import open_bundle, packaged_bundle
from uniecs.evaluation import KS, TASKS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def row(label: str) -> list[float]:
    """The figures of the README's table row that begins with `label`."""
    (line,) = re.findall(rf"^\| {re.escape(label)} \|(.*)\|$", README, re.MULTILINE)
    return [float(cell) for cell in line.split("|")[:3]]


@pytest.mark.parametrize("task", TASKS)
def test_the_evaluation_table_is_the_manifests(task: str) -> None:
    recorded = open_bundle(packaged_bundle("mini")).manifest["evaluation"]["tasks"][task]
    assert row(task) == [round(recorded[str(k)], 3) for k in KS]


@pytest.mark.parametrize(("name", "task"), [("tfidf", "t>t"), ("raw_pixels", "v>v")])
def test_the_baselines_are_the_manifests(name: str, task: str) -> None:
    recorded = open_bundle(packaged_bundle("mini")).manifest["evaluation"]["baselines"][name][task]
    assert row(f"{task} {name}") == [round(recorded[str(k)], 3) for k in KS]


@pytest.mark.parametrize(
    "page", sorted({"README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))})
)
def test_links_to_files_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
