"""The encoder gives each item its own embedding, runs only what is needed, and loses no good item."""

from __future__ import annotations

import io
import os
import runpy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uniecs import encoder as encoder_module
from uniecs.backends import threads as threads_module
from uniecs.backends.base import Backend, create_backend, embed_through
from uniecs.backends.threads import ThreadBudget, usable_cpus
from uniecs.encoder import Encoder, load
from uniecs.errors import BundleError, ImageError, InputError, ParityError, TextError, UniecsError

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_bundle.py"))))

Array = np.ndarray[Any, Any]


class Recorder:
    """A backend that notes each run, and may alter its output."""

    def __init__(self, inner: Backend, alter: Any = None) -> None:
        self.inner, self.alter = inner, alter
        self.name, self.device, self.precision = inner.name, inner.device, inner.precision
        self.runs: list[tuple[str, dict[str, tuple[int, ...]]]] = []
        self.before: Any = lambda: None

    def run(self, graph: str, inputs: Any) -> Array:
        self.runs.append((graph, {name: array.shape for name, array in inputs.items()}))
        self.before()
        output = self.inner.run(graph, inputs)
        return self.alter(output) if self.alter and graph == "fusion" else output

    def embed(self, pixel_values: Any, tokens: Any) -> Array:
        return embed_through(self.run, fake.DIM, pixel_values, tokens)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("bundles") / "fake"
    fake.write_fake_bundle(folder)
    return load(folder)


def recorded(encoder: Encoder, alter: Any = None, threads: int | None = None) -> tuple[Encoder, Recorder]:
    recorder = Recorder(create_backend(encoder.bundle), alter)
    return Encoder(encoder.bundle, recorder, threads), recorder


def picture(seed: int) -> Array:
    drawn: Array = np.random.default_rng(seed).integers(0, 256, (20, 15, 3), np.uint8)
    return drawn


def mixed(count: int) -> tuple[list[str | None], list[Array | None]]:
    """Items of all three kinds in turn, texts of differing length."""
    words, rng = fake.WORDS[4:], np.random.default_rng(5)
    texts = [None if i % 3 == 0 else " ".join(rng.choice(words, i % 11 + 3)) for i in range(count)]
    images = [None if i % 3 == 1 else picture(i) for i in range(count)]
    return texts, images


def test_it_tells_what_it_is(encoder: Encoder) -> None:
    assert (encoder.backend, encoder.device, encoder.precision) == ("openvino", "cpu", "fp32")
    assert encoder.embed_dim == 8
    assert encoder.model_id == encoder.bundle.model_id
    assert encoder.model_id in repr(encoder)


def test_raw_golden_inputs_give_the_golden_embeddings(encoder: Encoder) -> None:
    golden = encoder.bundle.golden()
    texts = encoder.bundle.manifest["golden"]["texts"]
    images = [
        image if has else None for image, has in zip(golden["images"], golden["modality_indicator"][:, 0], strict=True)
    ]
    embeddings = encoder.encode(texts, images)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, golden["embedding"], atol=1e-5)
    for worse in (np.zeros_like(embeddings), embeddings / 2, embeddings[::-1]):
        assert np.abs(worse - golden["embedding"]).max() > 0.1


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_batches_and_windows_do_not_change_an_embedding(encoder: Encoder, batch_size: int) -> None:
    texts, images = mixed(50)
    alone = np.concatenate([encoder.encode([t], [i]) for t, i in zip(texts, images, strict=True)])
    np.testing.assert_allclose(encoder.encode(texts, images, batch_size=batch_size), alone, atol=1e-5)
    assert len(np.unique(alone.round(4), axis=0)) == 50


def test_one_side_for_all_equals_none_on_the_other(encoder: Encoder) -> None:
    np.testing.assert_array_equal(encoder.encode(texts=["red bag"]), encoder.encode(["red bag"], [None]))
    np.testing.assert_array_equal(encoder.encode(images=[picture(1)]), encoder.encode([None], [picture(1)]))


def test_only_the_needed_graphs_run_and_an_absent_side_is_one_token(encoder: Encoder) -> None:
    spied, recorder = recorded(encoder)
    spied.encode(texts=["red bag"])
    assert [graph for graph, _ in recorder.runs] == ["text_encoder", "fusion"]
    assert recorder.runs[1][1]["image_tokens"] == (1, 1, 8)
    recorder.runs.clear()
    spied.encode(images=[picture(0)])
    assert [graph for graph, _ in recorder.runs] == ["image_encoder", "fusion"]
    assert recorder.runs[1][1]["text_tokens"] == (1, 1, 8)
    assert recorder.runs[1][1]["text_mask"] == (1, 1)


def test_texts_are_sorted_so_that_padding_is_small(encoder: Encoder) -> None:
    spied, recorder = recorded(encoder)
    spied.encode(texts=["red", "red bag men women cotton shoe"] * 8, batch_size=8)
    shapes = [inputs["input_ids"] for graph, inputs in recorder.runs if graph == "text_encoder"]
    assert shapes == [(8, 4), (8, 8)]  # 3 and 8 tokens, in steps of 4


def test_padding_stays_within_the_longest_text_allowed(encoder: Encoder) -> None:
    spied, recorder = recorded(encoder)
    spied._preprocessing = replace(spied._preprocessing, max_tokens=6)
    spied.encode(texts=["red bag men"])
    assert recorder.runs[0][1]["input_ids"] == (1, 6)


def test_pixel_values_never_pile_up(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    spied, recorder = recorded(encoder)
    decoded: list[int] = []
    original = encoder_module.__dict__["pixel_values"]

    def counted(*arguments: Any) -> Any:
        done = sum(inputs["pixel_values"][0] for graph, inputs in recorder.runs if graph == "image_encoder")
        decoded.append(1)
        assert len(decoded) - done <= 8  # this batch and the next
        return original(*arguments)

    monkeypatch.setattr(encoder_module, "pixel_values", counted)
    spied.encode(images=[picture(0)] * 150, batch_size=4)
    assert len(decoded) == 150


def test_the_next_batch_is_decoded_while_this_one_runs(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    spied, recorder = recorded(encoder, threads=2)
    decoded, begun = 0, threading.Event()
    original = encoder_module.__dict__["pixel_values"]

    def counted(*arguments: Any) -> Any:
        nonlocal decoded
        decoded += 1
        if decoded > 4:
            begun.set()
        return original(*arguments)

    monkeypatch.setattr(encoder_module, "pixel_values", counted)
    recorder.before = lambda: begun.wait(60)
    spied.encode(images=[picture(i) for i in range(8)], batch_size=4)
    assert begun.is_set()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_what_comes_out(encoder: Encoder, tmp_path: Path, threads: int) -> None:
    texts, images, expected = faulty(tmp_path)
    result = recorded(encoder, threads=threads)[0].encode(texts * 3, images * 3, errors="return", batch_size=4)
    places = {i + turn * len(texts): error for turn in range(3) for i, error in expected.items()}
    assert {i: type(error) for i, error in result.errors.items()} == places
    once = encoder.encode(texts, images, errors="return").embeddings
    np.testing.assert_allclose(result.embeddings, np.concatenate([once] * 3), atol=1e-5)


def test_one_image_starts_no_thread(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    spied, _ = recorded(encoder, threads=4)
    monkeypatch.setattr(encoder_module, "ThreadPoolExecutor", None)
    spied.encode(images=[picture(0)])
    spied.encode(texts=["red"] * 40)
    with pytest.raises(TypeError):
        spied.encode(images=[picture(0)] * 2)


def test_one_object_may_stand_in_many_items(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(1)).resize((400, 400)).save(path)
    with Image.open(path) as lazy:
        rows = recorded(encoder, threads=8)[0].encode(images=[lazy] * 16, batch_size=8)
    np.testing.assert_allclose(rows, np.repeat(encoder.encode(images=[path]), 16, axis=0), atol=1e-5)


def test_decoding_takes_what_runs_leave() -> None:
    budget, active, most = ThreadBudget(3), 0, 0
    lock = threading.Lock()

    def decode(_: int) -> None:
        nonlocal active, most
        with budget.decode():
            with lock:
                active += 1
                most = max(most, active)
            time.sleep(0.002)
            with lock:
                active -= 1

    for running, allowed in ((0, 3), (1, 2), (2, 1), (3, 1), (99, 1)):
        most = 0
        with ThreadPoolExecutor(8) as pool, budget.run(running):
            list(pool.map(decode, range(24)))
        assert 1 <= most <= allowed
    with pytest.raises(KeyError), budget.run(3):
        raise KeyError
    assert budget._running == 0


def test_usable_cpus_obey_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(threads_module, "CGROUP_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cpus() == 6
    for text, expected in {"max 100000": 6, "150000 100000": 2, "900000 100000": 6, "1000 100000": 1, "odd": 6}.items():
        quota.write_text(text)
        assert usable_cpus() == expected


def test_nothing_in_nothing_out(encoder: Encoder) -> None:
    empty: list[dict[str, Any]] = [{"texts": []}, {"images": ()}, {"texts": [], "images": []}]
    for arguments in empty:
        assert encoder.encode(**arguments).shape == (0, 8)
        result = encoder.encode(**arguments, errors="return")
        assert (result.embeddings.shape, result.errors) == ((0, 8), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither texts nor images"),
        ({"texts": "red kurta"}, "texts is of type str"),
        ({"texts": 3}, "texts is of type int"),
        ({"texts": {"a", "b"}}, "texts is of type set"),
        ({"texts": np.zeros((2, 2))}, "texts is of type ndarray"),
        ({"images": "a.jpg"}, "images is of type str"),
        ({"images": Path("a.jpg")}, "images is of type"),
        ({"images": b"\xff\xd8"}, "images is of type bytes"),
        ({"images": io.BytesIO(b"x")}, "images is of type BytesIO"),
        ({"images": Image.new("RGB", (2, 2))}, "images is of type Image"),
        ({"images": np.zeros((4, 4, 3), np.uint8)}, "images is of type ndarray"),
        ({"texts": ["red", "blue"], "images": [None]}, "2 texts and 1 images"),
        ({"texts": ["red"], "errors": "ignore"}, "errors is 'ignore'"),
        ({"texts": ["red"], "batch_size": 0}, "batch_size is 0"),
        ({"texts": ["red"], "batch_size": 2.0}, "batch_size is 2.0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(encoder: Encoder, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode(**arguments)


def faulty(tmp_path: Path) -> tuple[list[Any], list[Any], dict[int, type[UniecsError]]]:
    """Good and bad items of every kind, and the error each bad position must give."""
    (tmp_path / "text.jpg").write_text("not an image")
    stream = io.BytesIO()
    Image.fromarray(picture(3)).save(stream, "PNG")
    items: list[tuple[Any, Any, type[UniecsError] | None]] = [
        ("red kurta", None, None),
        (None, None, InputError),
        ("", None, TextError),
        ("blue dress", picture(1), None),
        ("blue dress", tmp_path / "missing.jpg", ImageError),
        (7, None, TextError),
        (float("nan"), picture(1), TextError),
        (None, np.full((4, 4, 3), np.nan), ImageError),
        (None, tmp_path / "text.jpg", ImageError),
        (None, stream.getvalue(), None),
        (None, stream.getvalue()[:60], ImageError),
        ("\ud800", None, TextError),
        ("红色 👗 \0", None, None),
        ("red " * 25_000, None, None),
        (None, b"", ImageError),
        (None, 3, ImageError),
        ("black bag", None, None),
    ]
    errors = {i: error for i, (_, _, error) in enumerate(items) if error}
    return [text for text, _, _ in items], [image for _, image, _ in items], errors


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_bad_items_are_returned_and_the_good_ones_embedded(encoder: Encoder, tmp_path: Path, batch_size: int) -> None:
    texts, images, expected = faulty(tmp_path)
    result = encoder.encode(texts, images, errors="return", batch_size=batch_size)
    assert {i: type(error) for i, error in result.errors.items()} == expected
    assert list(result.errors) == sorted(result.errors)
    for i in range(len(texts)):
        if i in expected:
            assert np.isnan(result.embeddings[i]).all()
        else:
            np.testing.assert_allclose(result.embeddings[i], encoder.encode([texts[i]], [images[i]])[0], atol=1e-5)


def test_the_first_bad_item_is_raised_with_its_position(encoder: Encoder, tmp_path: Path) -> None:
    texts, images, _ = faulty(tmp_path)
    with pytest.raises(InputError, match=r"^item 1: .*neither text nor image"):
        encoder.encode(texts, images)
    with pytest.raises(ImageError, match=r"^item 40: .*missing\.jpg") as caught:
        encoder.encode(images=[*[picture(0)] * 40, tmp_path / "missing.jpg", b""], batch_size=2)
    assert isinstance(caught.value.__cause__, ImageError)


@pytest.mark.parametrize("alter", [lambda x: x * np.nan, lambda x: x / 0.0, lambda x: x[:, :3]])
def test_an_engine_that_gives_nonsense_is_found(encoder: Encoder, alter: Any) -> None:
    broken, _ = recorded(encoder, alter)
    with np.errstate(all="ignore"), pytest.raises(ParityError, match="expected finite"):
        broken.encode(["red"], errors="return")


def test_many_threads_encode_at_once(encoder: Encoder) -> None:
    texts, images = mixed(24)
    expected = encoder.encode(texts, images)
    with ThreadPoolExecutor(6) as pool:
        rows = list(pool.map(lambda i: encoder.encode([texts[i]], [images[i]])[0], range(24)))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_an_unknown_bundle_is_an_error() -> None:
    with pytest.raises(BundleError, match=r"no bundle 'no-such'.*packaged name"):
        load("no-such")
