"""Engines, their cache and the runtime, on stand-ins for TensorRT and CUDA: nothing here has met a GPU."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="engines are built from ONNX graphs")
pytest.importorskip("onnxruntime", reason="the stand-in for TensorRT computes with it")

from uniecs.backends import engine_cache, tensorrt_worker
from uniecs.backends.base import GRAPHS, available_backends, create_backend
from uniecs.backends.engine_cache import MAGIC, EngineKey, Machine, Profile, load_engine, store_engine
from uniecs.backends.tensorrt import TensorRtBackend, this_machine
from uniecs.bundle import Bundle, open_bundle, packaged_bundle
from uniecs.cli import main
from uniecs.encoder import Encoder
from uniecs.errors import BackendError, EngineMismatchError, MissingExtraError
from uniecs.export import tensorrt_build
from uniecs.export.tensorrt_build import build_engines

HERE = Path(__file__)
fake = SimpleNamespace(**runpy.run_path(str(HERE.with_name("fake_bundle.py"))))
stand_ins = SimpleNamespace(**runpy.run_path(str(HERE.with_name("fake_tensorrt.py"))))
Array = np.ndarray[Any, Any]

MACHINE = Machine("Fake GPU", "8.6", "580.65.6", "10.9.0")
PROFILE = Profile((1, 8, 32), (1, 16, 16), (1, 13, 13))
KEY = EngineKey("fake-0123", "fusion", MACHINE, PROFILE)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The machine that the stand-ins play, with an empty cache."""
    monkeypatch.setenv("UNIECS_CACHE", str(tmp_path / "cache"))
    return stand_ins.install(monkeypatch)


@pytest.fixture
def backend(state: Any, bundle: Bundle) -> TensorRtBackend:
    build_engines(bundle)
    made = create_backend(bundle, "tensorrt")
    assert isinstance(made, TensorRtBackend)
    return made


def on_the_host(bundle: Bundle, pixels: Array | None, tokens: Any) -> Array:
    result: Array = create_backend(bundle, "onnxruntime").embed(pixels, tokens)
    return result


# --- the cache


def test_an_engine_comes_back_under_its_key(tmp_path: Path) -> None:
    path = store_engine(tmp_path, KEY, b"engine")
    assert path == KEY.path(tmp_path)
    assert path.read_bytes().startswith(MAGIC)
    assert load_engine(tmp_path, KEY) == b"engine"
    store_engine(tmp_path, KEY, b"another")
    assert load_engine(tmp_path, KEY) == b"another"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


PARTS = {
    "model_id": replace(KEY, model_id="fake-4567"),
    "graph": replace(KEY, graph="text_encoder"),
    "precision": replace(KEY, precision="bf16"),
    "recipe": replace(KEY, recipe=KEY.recipe + 1),
    "gpu": replace(KEY, machine=replace(MACHINE, gpu="Other GPU")),
    "compute_capability": replace(KEY, machine=replace(MACHINE, compute_capability="9.0")),
    "driver": replace(KEY, machine=replace(MACHINE, driver="590.1.2")),
    "tensorrt": replace(KEY, machine=replace(MACHINE, tensorrt="11.0.0")),
    "batch": replace(KEY, profile=replace(PROFILE, batch=(1, 8, 64))),
    "text_length": replace(KEY, profile=replace(PROFILE, text_length=(1, 16, 64))),
    "image_length": replace(KEY, profile=replace(PROFILE, image_length=(1, 50, 50))),
}


def test_every_part_of_a_key_counts() -> None:
    assert PARTS.keys() == KEY.flat().keys()
    paths = {each.path(Path()) for each in (KEY, *PARTS.values())}
    assert len(paths) == 1 + len(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_an_engine_of_another_key_is_not_loaded(tmp_path: Path, part: str) -> None:
    other = PARTS[part]
    store_engine(tmp_path, other, b"engine")
    beside = part not in ("model_id", "graph")
    expected = (EngineMismatchError, f"{part}: .*, here ") if beside else (BackendError, "no TensorRT engine")
    with pytest.raises(expected[0], match=expected[1]):
        load_engine(tmp_path, KEY)
    # Copied to where the right one would be, it is told by what it says of itself.
    KEY.path(tmp_path).parent.mkdir(exist_ok=True)
    shutil.copy(other.path(tmp_path), KEY.path(tmp_path))
    with pytest.raises(EngineMismatchError, match=f"another engine.*{part}: .*, here .*uniecs build"):
        load_engine(tmp_path, KEY)


def test_a_missing_engine_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="run `uniecs build BUNDLE`") as caught:
        load_engine(tmp_path / "nowhere", KEY)
    assert not isinstance(caught.value, EngineMismatchError)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:-1] + b"?",
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"ONNX" + data,
        lambda data: data.replace(b'"sha256"', b'"sha257"'),
        lambda data: MAGIC + (1 << 62).to_bytes(8, "little") + data,
        lambda data: MAGIC + (2).to_bytes(8, "little") + b"[]" + data,
    ],
)
def test_a_damaged_engine_is_told(tmp_path: Path, damage: Any) -> None:
    path = store_engine(tmp_path, KEY, b"engine")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EngineMismatchError, match="uniecs build"):
        load_engine(tmp_path, KEY)


def test_a_write_that_fails_leaves_the_old_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store_engine(tmp_path, KEY, b"engine")

    def full(path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(engine_cache, "sync", full)
    with pytest.raises(OSError, match="no space"):
        store_engine(tmp_path, KEY, b"another")
    assert load_engine(tmp_path, KEY) == b"engine"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_two_writes_of_one_engine_at_a_time_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(path: Path) -> None:
        monkeypatch.undo()
        store_engine(tmp_path, KEY, b"another")

    monkeypatch.setattr(engine_cache, "sync", meanwhile)
    path = store_engine(tmp_path, KEY, b"engine")
    assert load_engine(tmp_path, KEY) == b"engine"
    assert list(path.parent.iterdir()) == [path]


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIECS_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert engine_cache.default_cache() == Path("/a")
    monkeypatch.delenv("UNIECS_CACHE")
    assert engine_cache.default_cache() == Path("/b/uniecs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert engine_cache.default_cache() == Path.home() / ".cache" / "uniecs"


# --- building


def test_the_profile_is_the_manifests(bundle: Bundle) -> None:
    assert Profile.of(bundle) == PROFILE
    port = bundle.manifest["graphs"]["fusion"]["inputs"]["image_tokens"]
    assert PROFILE.shapes(port) == ((1, 1, 8), (8, 13, 8), (32, 13, 8))


def test_engines_are_built_once(state: Any, bundle: Bundle) -> None:
    machine, first = build_engines(bundle)
    assert machine == this_machine() == MACHINE
    assert [(each.graph, each.cached) for each in first] == [(graph, False) for graph in GRAPHS]
    assert len(state.builds) == 3
    _, second = build_engines(bundle)
    assert all(each.cached for each in second)
    assert [each.path for each in second] == [each.path for each in first]
    assert len(state.builds) == 3
    assert tensorrt_build.timing_cache_path(engine_cache.default_cache(), machine).read_bytes() == b"timings"


@pytest.mark.parametrize(
    "change", [{"driver": (590, 1)}, {"gpu": "Other GPU"}, {"capability": (9, 0)}, {"version": "11.0.0"}]
)
def test_another_machine_builds_anew_and_does_not_load_the_old(state: Any, bundle: Bundle, change: Any) -> None:
    build_engines(bundle)
    vars(state).update(change)
    sys.modules["tensorrt"].__dict__["__version__"] = state.version
    with pytest.raises(EngineMismatchError, match=r"here .*uniecs build"):
        create_backend(bundle, "tensorrt")
    _, engines = build_engines(bundle)
    assert not any(each.cached for each in engines)
    create_backend(bundle, "tensorrt")


def test_a_damaged_engine_is_built_anew(state: Any, bundle: Bundle) -> None:
    _, engines = build_engines(bundle)
    engines[1].path.write_bytes(b"damaged")
    _, again = build_engines(bundle)
    assert [each.cached for each in again] == [True, False, True]


def test_an_engine_that_tensorrt_cannot_load_is_built_anew(state: Any, bundle: Bundle) -> None:
    build_engines(bundle)
    store_engine(engine_cache.default_cache(), EngineKey(bundle.model_id, "fusion", MACHINE, PROFILE), b"no engine")
    _, again = build_engines(bundle)
    assert [each.cached for each in again] == [True, True, False]
    create_backend(bundle, "tensorrt")


def test_a_timing_cache_of_another_tensorrt_is_left_aside(state: Any, bundle: Bundle) -> None:
    path = tensorrt_build.timing_cache_path(engine_cache.default_cache(), MACHINE)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of another one")
    build_engines(bundle)
    assert path.read_bytes().startswith(b"timing")


def test_what_tensorrt_refuses_is_an_error_and_no_engine(
    state: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt: Any = sys.modules["tensorrt"]
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(BackendError, match="cannot build image_encoder"):
        build_engines(bundle)
    monkeypatch.setattr(trt.OnnxParser, "parse", lambda *_: False)
    monkeypatch.setattr(trt.OnnxParser, "num_errors", 1, raising=False)
    error = SimpleNamespace(desc=lambda: "no importer for Frobnicate")
    monkeypatch.setattr(trt.OnnxParser, "get_error", lambda *_: error, raising=False)
    monkeypatch.setattr(trt.OnnxParser, "__init__", lambda *_: None)
    with pytest.raises(BackendError, match="cannot read image_encoder: no importer for Frobnicate"):
        build_engines(bundle)
    assert not list((tmp_path / "cache").rglob("*.engine"))


def test_the_command_builds_and_tells(state: Any, bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    assert main(["build", str(bundle.path), "--cache", str(tmp_path / "other"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["gpu"], report["tensorrt"], len(report["engines"])) == ("Fake GPU", "10.9.0", 3)
    assert all(Path(each["path"]).is_relative_to(tmp_path / "other") for each in report["engines"])
    assert main(["build", str(bundle.path), "--cache", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.count("kept") == 3
    assert main(["build", str(tmp_path / "no bundle")]) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["build"])


def test_without_tensorrt_or_gpu_the_command_says_what_is_missing(
    state: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    state.gpu = ""
    assert main(["build", str(bundle.path)]) == 1
    assert "no NVIDIA GPU can be used here" in capsys.readouterr().err
    assert available_backends()["tensorrt"].startswith("unavailable: no NVIDIA GPU")
    for module, hint in (("cuda.core", r"uniecs\[tensorrt\]"), ("tensorrt", "docs/tensorrt.md")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=hint):
            create_backend(bundle, "tensorrt")
        assert main(["build", str(bundle.path)]) == 1


# --- running


@pytest.mark.parametrize(("images", "texts"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("count", [1, 3, 32, 70])
def test_embeddings_are_those_of_the_graphs(
    backend: TensorRtBackend, bundle: Bundle, images: bool, texts: bool, count: int
) -> None:
    pixels, tokens = fake.golden_rows(bundle.golden(), count)
    given = (pixels if images else None, tokens if texts else None)
    expected = on_the_host(bundle, *given)
    # Thrice: directly, captured, and from the CUDA graph.
    for _ in range(3):
        embedding = backend.embed(*given)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(embedding, expected, atol=5e-3)
    assert np.abs(expected - on_the_host(bundle, *(pixels[::-1], tokens))).max() > 0.1 or count == 1


def test_tokens_do_not_pass_through_the_host(state: Any, backend: TensorRtBackend, bundle: Bundle) -> None:
    pixels, tokens = fake.golden_rows(bundle.golden(), 8)
    backend.embed(pixels, tokens)
    state.events.clear()
    backend.embed(pixels, tokens)
    # Up: pixels, ids, mask twice, indicator; three graphs; down: the embedding.
    assert state.events == ["copy"] * 5 + ["run"] * 3 + ["copy"]


def test_small_shapes_become_cuda_graphs_when_they_come_again(
    state: Any, backend: TensorRtBackend, bundle: Bundle
) -> None:
    pixels, (ids, mask) = fake.golden_rows(bundle.golden(), 2)
    backend.embed(pixels, None)
    assert "capture" not in state.events
    backend.embed(pixels, None)
    backend.embed(pixels, None)
    assert [each for each in state.events if each in ("capture", "launch")] == ["capture", "launch", "launch"]
    # Texts of 5 and of 6 tokens are padded to one shape; another batch size is another shape.
    state.events.clear()
    for length in (5, 6, 5):
        backend.embed(None, (ids[:, :length], mask[:, :length]))
    assert state.events.count("capture") == 1
    backend.embed(None, (ids[:1], mask[:1]))
    assert state.events.count("capture") == 1
    # A large one never is.
    state.events.clear()
    for _ in range(3):
        backend.embed(fake.golden_rows(bundle.golden(), 8)[0], None)
    assert "capture" not in state.events


def test_old_cuda_graphs_make_room(
    state: Any, backend: TensorRtBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_worker, "CAPTURED_JOBS", 2)
    golden = bundle.golden()
    for count in (1, 1, 2, 2, 1, 3, 3, 1):
        np.testing.assert_allclose(
            backend.embed(fake.golden_rows(golden, count)[0], None),
            on_the_host(bundle, fake.golden_rows(golden, count)[0], None),
            atol=5e-3,
        )
    assert state.events.count("capture") == 3
    backend.embed(fake.golden_rows(golden, 2)[0], None)
    assert state.events.count("capture") == 4


def test_what_cannot_be_captured_still_runs(
    state: Any, backend: TensorRtBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    # Not caplog: libraries of other tests configure logging for the whole process.
    monkeypatch.setattr(logging.getLogger("uniecs.tensorrt"), "warning", lambda text, *_: said.append(text))
    state.capturable = False
    pixels, tokens = fake.golden_rows(bundle.golden(), 2)
    for _ in range(4):
        np.testing.assert_allclose(backend.embed(pixels, tokens), on_the_host(bundle, pixels, tokens), atol=5e-3)
    assert [text.split(":")[0] for text in said] == ["going on without CUDA graphs, which only costs time"]


def test_an_absent_side_is_zero_whatever_ran_before(backend: TensorRtBackend, bundle: Bundle) -> None:
    pixels, tokens = fake.golden_rows(bundle.golden(), 4)
    alone = backend.embed(pixels, None)
    backend.embed(pixels[::-1], (tokens[0][::-1], tokens[1][::-1]))
    np.testing.assert_array_equal(backend.embed(pixels, None), alone)


def test_many_threads_get_their_own_answers(backend: TensorRtBackend, bundle: Bundle) -> None:
    golden = bundle.golden()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: backend.embed(golden["pixel_values"][i : i + 1], None), [0, 1, 4, 5] * 16))
    expected = on_the_host(bundle, golden["pixel_values"][[0, 1, 4, 5]], None)
    np.testing.assert_allclose(np.concatenate(results), np.tile(expected, (16, 1)), atol=5e-3)
    assert 1 <= len(backend._idle) <= 8


def test_each_graph_runs_alone(backend: TensorRtBackend, bundle: Bundle) -> None:
    golden = bundle.golden()
    tokens = backend.run("image_encoder", {"pixel_values": golden["pixel_values"]})
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, golden["image_tokens"], atol=2e-2)
    feed = {name: golden[name] for name in ("image_tokens", "text_tokens", "modality_indicator")}
    embedding = backend.run("fusion", {**feed, "text_mask": golden["attention_mask"]})
    np.testing.assert_allclose(embedding, golden["embedding"], atol=5e-3)


def test_inputs_that_do_not_fit_are_errors_and_harm_nothing(backend: TensorRtBackend, bundle: Bundle) -> None:
    pixels, (ids, mask) = fake.golden_rows(bundle.golden(), 2)
    with pytest.raises(BackendError, match="pixel_values has shape"):
        backend.embed(pixels[..., :5], None)
    with pytest.raises(BackendError, match="text_length is 17"):
        backend.embed(None, (np.ones((1, 17), np.int64), np.ones((1, 17), np.int64)))
    with pytest.raises(BackendError, match=r"cannot run text_encoder on inputs .*expected"):
        backend.run("text_encoder", {"input_ids": ids, "attention_mask": mask[:, 1:]})
    with pytest.raises(BackendError, match="batch is 40"):
        backend.run("image_encoder", {"pixel_values": np.repeat(pixels, 20, axis=0)})
    with pytest.raises(BackendError, match="no graph"):
        backend.run("decoder", {})
    np.testing.assert_allclose(backend.embed(pixels, None), on_the_host(bundle, pixels, None), atol=5e-3)


def test_a_failed_run_is_an_error_and_costs_its_worker_only(
    backend: TensorRtBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, _ = fake.golden_rows(bundle.golden(), 8)
    backend.embed(pixels, None)
    worker = backend._idle[0]
    context = worker._contexts["fusion"]
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
    with pytest.raises(BackendError, match="TensorRT failed to run fusion"):
        backend.embed(pixels, None)
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: 1 / 0)
    backend._idle.append(worker)
    with pytest.raises(BackendError, match=r"tensorrt failed to run image_encoder, fusion on inputs .*division"):
        backend.embed(pixels, None)
    np.testing.assert_allclose(backend.embed(pixels, None), on_the_host(bundle, pixels, None), atol=5e-3)
    assert worker not in backend._idle


def test_an_engine_that_tensorrt_cannot_load_is_an_error(state: Any, bundle: Bundle) -> None:
    build_engines(bundle)
    store_engine(engine_cache.default_cache(), EngineKey(bundle.model_id, "fusion", MACHINE, PROFILE), b"no engine")
    with pytest.raises(BackendError, match=r"cannot load .*fusion.*uniecs build"):
        create_backend(bundle, "tensorrt")


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"precision": "fp32"}])
def test_it_runs_on_cuda_in_fp16_only(state: Any, bundle: Bundle, options: dict[str, str]) -> None:
    with pytest.raises(BackendError, match="on cuda in fp16"):
        create_backend(bundle, "tensorrt", **options)  # type: ignore[arg-type]


def test_no_other_backend_takes_fp16(bundle: Bundle) -> None:
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(BackendError, match="fp16"):
            create_backend(bundle, backend, precision="fp16")


def test_the_shipped_model_gives_its_golden_embeddings(state: Any) -> None:
    """Photos and texts to embeddings by `mini` in float16, all but the GPU and TensorRT being the real thing."""
    mini = open_bundle(packaged_bundle("mini"))
    build_engines(mini)
    encoder = Encoder(mini, create_backend(mini, "tensorrt"))
    assert (encoder.backend, encoder.device, encoder.precision) == ("tensorrt", "cuda", "fp16")
    golden = mini.golden()
    images = [
        image if has else None for image, has in zip(golden["images"], golden["modality_indicator"][:, 0], strict=True)
    ]
    embeddings = encoder.encode(mini.manifest["golden"]["texts"], images)
    cosines = (embeddings * golden["embedding"]).sum(1)
    assert cosines.min() > 0.99999
    assert (embeddings[::-1] * golden["embedding"]).sum(1).min() < 0.9
