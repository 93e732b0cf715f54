"""A bundle is opened only if every part of it is what the manifest says; anything else is a `BundleError`."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from uniecs.bundle import locate_bundle, open_bundle, packaged_bundle, packaged_names, write_manifest
from uniecs.errors import BundleError

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_bundle.py"))))

FILES = ("image_encoder.onnx", "text_encoder.onnx", "fusion.onnx", "tokenizer.json", "golden.safetensors")
ESCAPES = ("../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "C:x", "x\0", 7, None)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "fake"
    fake.write_fake_bundle(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "fake"))


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return manifest


def test_a_whole_bundle_opens(folder: Path) -> None:
    bundle = open_bundle(str(folder))
    assert (bundle.name, bundle.embed_dim) == ("fake", 8)
    assert bundle.preprocessing == fake.fake_config().preprocessing
    assert bundle.graph_path("fusion") == folder / "fusion.onnx"
    assert json.loads(bundle.tokenizer_json())["model"]["type"] == "WordPiece"
    with pytest.raises(BundleError, match="no graph 'gate'"):
        bundle.graph_path("gate")


def test_a_file_that_changes_after_the_bundle_was_opened_is_not_read(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.graph_bytes("fusion") == (folder / "fusion.onnx").read_bytes()
    fake.write_fake_bundle(folder, name="other", seed=1)
    (folder / "tokenizer.json").write_text("{}")
    for read in (lambda: bundle.graph_bytes("fusion"), bundle.tokenizer_json, bundle.golden):
        with pytest.raises(BundleError, match="has changed since the bundle was loaded: load it again"):
            read()


def test_model_id_is_the_formula_of_the_specification(folder: Path) -> None:
    manifest = manifest_of(folder)
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[:4]}
    parts = ",".join(f'"{name}":"{digest}"' for name, digest in sorted(sums.items()))
    numbers = '"height_px":16,"max_tokens":16,"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5],"width_px":12'
    canonical = f'{{"files":{{{parts}}},"preprocessing":{{{numbers}}}}}'
    assert manifest["model_id"] == "fake-" + hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_model_id_follows_weights_and_not_the_evaluation(folder: Path, tmp_path: Path) -> None:
    same = fake.write_fake_bundle(tmp_path / "same", evaluation={"t>t": {"1": 0.5}})
    other = fake.write_fake_bundle(tmp_path / "other", seed=1)
    assert same.model_id == open_bundle(folder).model_id != other.model_id


def test_golden_tensors_have_the_documented_shapes(folder: Path) -> None:
    golden = open_bundle(folder).golden()
    shapes = {name: (array.dtype.name, array.shape) for name, array in golden.items()}
    assert shapes["pixel_values"] == ("float32", (6, 3, 16, 12))
    assert shapes["image_tokens"] == ("float32", (6, 13, 8))
    assert shapes["input_ids"] == shapes["attention_mask"] == ("int64", (6, 6))
    np.testing.assert_allclose(np.linalg.norm(golden["embedding"], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        open_bundle(folder)


def test_no_flipped_bit_of_the_manifest_changes_the_model(folder: Path) -> None:
    whole = open_bundle(folder)
    data = (folder / "manifest.json").read_bytes()
    opened = 0
    for position in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 1
        (folder / "manifest.json").write_bytes(flipped)
        try:
            bundle = open_bundle(folder)
        except BundleError:
            continue
        opened += 1
        assert (bundle.model_id, bundle.preprocessing) == (whole.model_id, whole.preprocessing)
    assert opened < len(data) // 7


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_file_cut_off_or_missing_is_found(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"cut off|not JSON"):
        open_bundle(folder)
    (folder / name).write_bytes(b"")
    with pytest.raises(BundleError):
        open_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(folder)


@pytest.mark.parametrize("version", [2, 0, -1, "1", 1.0, True, None])
def test_another_format_version_is_refused(folder: Path, version: object) -> None:
    fake.edit_manifest(folder, format_version=version)
    with pytest.raises(BundleError, match="newer than 1: upgrade" if version == 2 else "format_version is"):
        open_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ufeff{}", "[" * 100_000, '{"format": "other"}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"not JSON|not a bundle's manifest"):
        open_bundle(folder)
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="not JSON"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ESCAPES)
def test_a_graph_outside_the_folder_is_refused(folder: Path, name: object) -> None:
    (folder.parent / "x").write_bytes((folder / "fusion.onnx").read_bytes())
    manifest = manifest_of(folder)
    manifest["graphs"]["fusion"]["file"] = name
    fake.edit_manifest(folder, graphs=manifest["graphs"])
    with pytest.raises(BundleError, match=r"plain file name|JSON str"):
        open_bundle(folder)


@pytest.mark.parametrize("name", [each for each in ESCAPES if isinstance(each, str)])
def test_a_listed_file_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "x").write_bytes(b"x")
    recorded = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    fake.edit_manifest(folder, files={**manifest_of(folder)["files"], name: recorded})
    with pytest.raises(BundleError, match="plain file name"):
        open_bundle(folder)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_symbolic_link_is_refused(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(folder)


def test_weights_in_another_file_are_refused(folder: Path) -> None:
    model = onnx.load(folder / "fusion.onnx")
    convert_model_to_external_data(model, location="fusion.data", size_threshold=0)
    (folder / "fusion.onnx").unlink()
    onnx.save(model, folder / "fusion.onnx")
    assert (folder / "fusion.data").exists()
    with pytest.raises(BundleError, match="weights in another file"):
        write_manifest(folder, manifest_of(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_id": "fake-0123456789abcdef"}, "altered"),
        ({"name": "other"}, "altered"),
        ({"name": "../other"}, "plain file name"),
        ({"embed_dim": 9}, "embed_dim"),
        ({"embed_dim": "8"}, "embed_dim"),
        ({"preprocessing": {"height_px": 16}}, "lacks the key"),
        ({"preprocessing": {"height_px": 32, "width_px": 12, "max_tokens": 16}}, "differs"),
        ({"model": None}, "table of keys"),
        ({"graphs": {}}, "image_encoder"),
        ({"files": {}}, "not among the manifest's files"),
        ({"files": []}, "files"),
        ({"golden": None}, "golden"),
        ({"golden": {"texts": [None, 5]}}, "golden texts"),
    ],
)
def test_an_altered_manifest_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    fake.edit_manifest(folder, **change)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_altered_preprocessing_breaks_the_model_id(folder: Path) -> None:
    manifest = manifest_of(folder)
    preprocessing = {**manifest["preprocessing"], "mean": [0.1, 0.2, 0.3]}
    model = {**manifest["model"], "preprocessing": preprocessing}
    fake.edit_manifest(folder, preprocessing=preprocessing, model=model)
    with pytest.raises(BundleError, match="altered"):
        open_bundle(folder)


def test_golden_that_do_not_fit_are_refused(folder: Path) -> None:
    (folder / "golden.safetensors").write_bytes(b"not safetensors")
    bundle = write_manifest(folder, manifest_of(folder))
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.golden()


def test_write_manifest_leaves_the_old_one_when_a_part_is_missing(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    manifest = manifest_of(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is not among"):
        write_manifest(folder, manifest)
    assert (folder / "manifest.json").read_bytes() == before
    assert not [each for each in folder.iterdir() if each.name.startswith(".")]


def test_names_and_paths_are_told_apart(folder: Path) -> None:
    assert locate_bundle(folder) == folder
    for unknown in ("no-such-bundle", folder / "none", "\0", 3):
        with pytest.raises(BundleError):
            locate_bundle(unknown)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="packaged"):
        packaged_bundle("../fake")
    for name in packaged_names():
        assert open_bundle(packaged_bundle(name)).name == name
