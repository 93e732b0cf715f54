"""`BertEncoder` gives what the text encoder's graph gives for a few texts, and leaves to it what it does not know."""

from __future__ import annotations

import dataclasses
import multiprocessing
import runpy
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch: pip install 'uniecs[train]'")
pytest.importorskip("onnx", reason="exporting needs onnx: pip install 'uniecs[export]'")

from uniecs import _core  # noqa: E402
from uniecs.backends import bert_encoder as reader  # noqa: E402
from uniecs.backends.bert_encoder import bert_encoder  # noqa: E402
from uniecs.backends.openvino import CoreFirst, encoded, make_core  # noqa: E402
from uniecs.config import MODELS  # noqa: E402

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Made = Callable[[bool], tuple[Any, Any]]
TASKS = Path("/proc/self/task")
EPSILON = 1e-3  # so large that another one would be seen
random = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("random_network.py"))))
pytestmark = pytest.mark.skipif(not _core.row_instructions(), reason="BertEncoder needs AVX2")


def network(seed: int, **changes: Any) -> Any:
    tiny = MODELS["tiny"]
    text = dataclasses.replace(tiny.text, **({"hidden": 128, "heads": 4, "layer_norm_eps": EPSILON} | changes))
    return random.network(dataclasses.replace(tiny, embed_dim=32, text=text), "text_encoder", seed)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Of `network`, in compact weights or not: it and its graph."""
    once: Made = random.exporter(network, "text_encoder", tmp_path_factory.mktemp("text"))
    return once


def texts(rng: np.random.Generator, counts: list[int]) -> tuple[Ids, Ids]:
    """Ids and mask of texts of so many tokens, behind which there is padding."""
    ids = rng.integers(0, MODELS["tiny"].text.vocab_size, (len(counts), max(counts)))
    return ids, (np.arange(max(counts)) < np.array(counts)[:, None]).astype(np.int64)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("instructions", _core.row_instructions())
def test_texts_get_what_torch_gives(instructions: str, compact: bool, made: Made, monkeypatch: Any) -> None:
    monkeypatch.setattr(reader, "BertEncoder", partial(_core.BertEncoder, instructions=instructions))
    model, graph = made(compact)
    encoder = bert_encoder(graph, _core.Crew(2))
    assert encoder is not None
    rng = np.random.default_rng(0)
    for counts in ([1], [7], [16], [3, 1, 5], [8, 8]):
        ids, mask = texts(rng, counts)
        with torch.inference_mode():
            expected = model.text_encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        found = encoder.encode(ids, mask)
        assert found is not None
        np.testing.assert_allclose(found[mask != 0], expected[mask != 0], atol=2e-5)
        assert not found[mask == 0].any()


@pytest.fixture(scope="module")
def tiny_encoder(made: Made) -> tuple[Any, Any]:
    """An encoder of two threads, as many as its width keeps busy, and the graph that it is read from, compiled."""
    _, graph = made(False)
    compiled = make_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return bert_encoder(graph, _core.Crew(2)), compiled


def test_every_weight_counts(made: Made) -> None:
    """Each array that an encoder has, changed, changes some token; but for the keys' bias, which softmax drops."""
    arrays: dict[str, Floats] = {}

    def kept(find: Any, width: int, *_: Any) -> Any:
        def found(name: str) -> Floats | None:
            array: Floats | None = find(name)
            if array is not None:
                arrays[name] = array
            return array

        return _core.BertEncoder(found, width, EPSILON, _core.Crew(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BertEncoder", kept)
        bert_encoder(made(False)[1], _core.Crew(1))
    ids, mask = texts(np.random.default_rng(1), [6, 9])

    def tokens(given: dict[str, Floats], epsilon: float = EPSILON) -> Floats:
        encoder = _core.BertEncoder(given.get, 32, epsilon, _core.Crew(1))
        found = encoder.encode(ids, mask)
        assert found is not None
        return found

    expected = tokens(arrays)
    for name, array in arrays.items():
        changed = array.copy()
        changed[..., -1] += 1
        moved = np.abs(tokens(arrays | {name: changed}) - expected).max()
        assert (moved < 1e-5) if name.endswith("key.bias") else (moved > 1e-5), name
    assert len(arrays) == 2 * 16 + 5 + 2  # layers, embeddings, projection
    assert np.abs(tokens(arrays, 1e-12) - expected).max() > 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "gelu_new"},
        {"activation": "relu"},
        {"activation": "quick_gelu"},
        {"heads": 8},
        {"intermediate": 80},
    ],
    ids=lambda each: str(each),
)
def test_other_encoders_are_left_to_the_graph(changes: dict[str, Any], tmp_path: Path) -> None:
    graph = random.exported(network(0, layers=1, **changes), "text_encoder", tmp_path / "text.onnx", compact=False)
    assert bert_encoder(graph, _core.Crew(1)) is None


def test_what_does_not_fit_is_an_error(tiny_encoder: tuple[Any, Any]) -> None:
    encoder, _ = tiny_encoder
    ids, mask = texts(np.random.default_rng(0), [4])
    with pytest.raises(ValueError, match="different shapes"):
        encoder.encode(ids, mask[:, 1:])
    with pytest.raises(ValueError, match=r"LayerNorm\.bias"):
        _core.BertEncoder(lambda name: None, 32, 1e-12, _core.Crew(1))
    with pytest.raises(ValueError, match="AVX2"):
        _core.BertEncoder(lambda name: None, 32, 1e-12, _core.Crew(1), "instructions of another CPU")


def test_few_tokens_leave_the_graph(tiny_encoder: tuple[Any, Any]) -> None:
    """Either way the answer is the same; what the core does not take is the graph's to answer or refuse."""
    encoder, compiled = tiny_encoder
    rng, asked = np.random.default_rng(0), list[int]()

    def graph(inputs: Any) -> Floats:
        asked.append(len(inputs["input_ids"]))
        return np.array(compiled(inputs)[0])

    run = CoreFirst(partial(encoded, encoder), lambda: graph)

    def feed(ids: Ids, mask: Ids) -> dict[str, Ids]:
        return {"input_ids": ids, "attention_mask": mask}

    most = encoder.max_tokens
    for counts in ([1], [5, 3], [most // 4] * 4):
        ids, mask = texts(rng, counts)
        np.testing.assert_allclose(run(feed(ids, mask))[mask != 0], compiled(feed(ids, mask))[0][mask != 0], atol=2e-5)
    assert asked == []
    many = texts(rng, [most // 4] * 4 + [1])
    unseen = texts(rng, [4, 2])
    unseen[1][1] = 0
    for given in (many, unseen):
        np.testing.assert_array_equal(run(feed(*given)), np.array(compiled(feed(*given))[0]))
    assert asked == [5, 2]
    ids, mask = texts(rng, [4])
    for strange in (-1, MODELS["tiny"].text.vocab_size, 2**62):
        assert encoder.encode(np.where(ids == ids[0, 0], strange, ids), mask) is None
    assert encoder.encode(*texts(rng, [MODELS["tiny"].text.max_positions + 1])) is None
    assert encoder.encode(np.zeros((0, 4), np.int64), np.zeros((0, 4), np.int64)) is None


def test_many_callers_get_their_own_answers(tiny_encoder: tuple[Any, Any]) -> None:
    encoder, _ = tiny_encoder
    rng = np.random.default_rng(0)
    given = [texts(rng, [int(rng.integers(1, 9)), int(rng.integers(1, 9))]) for _ in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: encoder.encode(*each), given * 4))
    for found, each in zip(together, given * 4, strict=True):
        np.testing.assert_array_equal(found, encoder.encode(*each))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_goes_on(tiny_encoder: tuple[Any, Any]) -> None:
    """The threads that helped before are not in it."""
    encoder, _ = tiny_encoder
    given = texts(np.random.default_rng(0), [8])
    expected = encoder.encode(*given)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: [answers.put(encoder.encode(*given)) for _ in range(3)])
    child.start()
    child.join(60)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()
    for _ in range(3):
        np.testing.assert_array_equal(answers.get(), expected)
    np.testing.assert_array_equal(encoder.encode(*given), expected)


@pytest.mark.skipif(not TASKS.exists(), reason="needs fork, and /proc to count threads")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_amid_other_calls_has_its_threads(tiny_encoder: tuple[Any, Any]) -> None:
    """Calls of its parent's other threads, cut off in it, neither count nor keep what they had locked."""
    encoder, _ = tiny_encoder
    given = texts(np.random.default_rng(0), [16])
    assert encoder.encode(*given) is not None
    ended = threading.Event()

    def call() -> None:
        while not ended.is_set():
            encoder.encode(*given)

    def child() -> None:
        encoder.encode(*given)
        sys.exit(len(list(TASKS.iterdir())) - 2)  # one helps

    callers = [threading.Thread(target=call) for _ in range(3)]
    for each in callers:
        each.start()
    codes = []
    for _ in range(40):
        forked = multiprocessing.get_context("fork").Process(target=child)
        forked.start()
        forked.join(10)
        forked.kill()
        codes.append(forked.exitcode)
    ended.set()
    for each in callers:
        each.join()
    assert codes == [0] * len(codes)
