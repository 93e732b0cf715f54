"""The encode path in one run: queries end to end, batches, what lies outside the graphs, start-up, memory.

    python benchmarks/encode.py [--rounds 60] [--threads 2] [--base FOLDER] [--out FILE.json]

Everything is measured on the shipped `mini` and on a bundle of `base`'s sizes: the folder --base, or where there is
none random weights, exported to it once (minutes, 0.8 GB). All contenders of a figure take turns, so that a slow moment
of the machine meets all; figures are medians, and ratios of them. The process is confined to --threads CPUs, which the
engines' defaults then use as well. A variant that a bundle lacks (int8) is left out; docs/serving.md says how `base`
gets it. Needs `uniecs[train,export,bench]`, and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS = (("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnxruntime", "fp32"))
EAGER, ORT, OPENVINO = "sentence-transformers", "ONNX Runtime, defaults", "OpenVINO, defaults"
TOKENS = 16
PHOTO_WIDTH_PX = 750
CATALOGUE = 64
REQUESTS = 10_000
FULL_LENGTH = "text, graph at full length"
PAUSE_S = 0.01  # what a contender's threads may spin after its turn is not the next one's time
Query = dict[str, list[Any]]
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Goal:
    """A figure and what it must be at least, or at most."""

    what: str
    value: float
    target: float
    at_most: bool = False

    def met(self) -> bool:
        """Whether it is."""
        return self.value <= self.target if self.at_most else self.value >= self.target

    def line(self) -> str:
        """For people."""
        sign = "<=" if self.at_most else ">="
        return f"{'met    ' if self.met() else 'NOT MET'} {self.what}: {self.value:.3g} (goal {sign} {self.target:g})"


def photo(seed: int) -> bytes:
    """A JPEG of 750 x 1000 px."""
    from uniecs.bench import inputs

    return inputs.photo(PHOTO_WIDTH_PX, seed)


def title(bundle: Any) -> str:
    """A text of exactly `TOKENS` tokens."""
    from uniecs.bench.inputs import texts
    from uniecs.preprocess import Tokenizer

    return texts(Tokenizer(bundle.tokenizer_json(), 64), TOKENS, 1)[0]


def interleaved(turns: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Seconds of each round of each contender, after two rounds of warm-up."""
    seconds: Seconds = {name: [] for name in turns}
    for turn in range(rounds + 2):
        for name, run in turns.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians_ms(seconds: Seconds) -> dict[str, float]:
    """Median of each contender in milliseconds."""
    return {name: float(np.median(each)) * 1e3 for name, each in seconds.items()}


class Timed:
    """A backend that adds up the time within its graphs."""

    def __init__(self, inner: Any, embed_dim: int) -> None:
        self._inner, self._embed_dim, self.seconds = inner, embed_dim, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, graph: str, inputs: Any) -> Any:
        """As `Backend.run`."""
        start = time.perf_counter()
        output = self._inner.run(graph, inputs)
        self.seconds += time.perf_counter() - start
        return output

    def embed(self, pixel_values: Any, tokens: Any) -> Any:
        """As `Backend.embed`, each graph timed."""
        from uniecs.backends.base import embed_through

        return embed_through(self.run, self._embed_dim, pixel_values, tokens)


def encoders(bundle: Any) -> dict[str, Any]:
    """Our variants that this bundle and this machine have."""
    import uniecs

    found = {}
    for backend, precision in VARIANTS:
        try:
            found[f"uniecs {backend} {precision}"] = uniecs.load(bundle.path, backend=backend, precision=precision)
        except (uniecs.BackendError, uniecs.BundleError, uniecs.MissingExtraError) as error:
            print(f"  left out: {backend} {precision}: {error}", flush=True)
    return found


def measure_model(bundle: Any, rounds: int) -> dict[str, Any]:
    """Queries, a catalogue, time outside the graphs, and fusion, of one model."""
    from encode_peers import SentenceTransformers

    from uniecs.bench.plain_engines import plain_encoder

    ours = encoders(bundle)
    peers = {ORT: plain_encoder(bundle, "onnxruntime"), OPENVINO: plain_encoder(bundle, "openvino")}
    contenders = {EAGER: SentenceTransformers(bundle), **peers, **ours}
    text, jpeg = title(bundle), photo(0)
    queries = {"text": {"texts": [text]}, "image": {"images": [jpeg]}, "both": {"texts": [text], "images": [jpeg]}}
    catalogue = [photo(seed) for seed in range(CATALOGUE)]
    best = {EAGER: contenders[EAGER], **{name: each for name, each in ours.items() if "openvino" in name}}
    return {
        "model_id": bundle.model_id,
        "query_ms": {kind: timed_queries(contenders, query, rounds) for kind, query in queries.items()},
        "catalogue_ms": medians_ms(
            interleaved(
                {name: lambda each=each: each.encode(images=catalogue) for name, each in best.items()},
                max(2, rounds // 20),
            )
        ),
        "outside_share": {name: outside(each, queries, rounds) for name, each in ours.items() if "openvino" in name},
        "fusion_ms": {name: fusion(each, rounds) for name, each in ours.items()},
    }


def timed_queries(contenders: Mapping[str, Any], query: Query, rounds: int) -> dict[str, float]:
    """Milliseconds of one query, from string or JPEG to embedding."""
    return medians_ms(
        interleaved({name: lambda each=each: each.encode(**query) for name, each in contenders.items()}, rounds)
    )


def outside(encoder: Any, queries: Mapping[str, Query], rounds: int) -> dict[str, float]:
    """Share of each query's time that is not spent within the graphs: the median over rounds."""
    import uniecs

    timed = Timed(encoder._backend, encoder.embed_dim)
    whole = uniecs.Encoder(encoder.bundle, timed)
    shares = {}
    for kind, query in queries.items():
        found = []
        for _ in range(rounds + 2):
            timed.seconds = 0.0
            start = time.perf_counter()
            whole.encode(**query)
            found.append(1 - timed.seconds / (time.perf_counter() - start))
        shares[kind] = float(np.median(found[2:]))
    return shares


def fusion(encoder: Any, rounds: int) -> dict[str, float]:
    """Milliseconds of the fusion of one item as a query runs it, and by the graph: of a text at full length, too."""
    model = encoder.bundle.manifest["model"]
    p, rng = model["preprocessing"], np.random.default_rng(0)
    patches = (p["height_px"] // model["image"]["patch_px"]) * (p["width_px"] // model["image"]["patch_px"])
    words, photo_tokens = (rng.normal(size=(1, n, encoder.embed_dim)).astype(np.float32) for n in (TOKENS, patches + 1))
    absent, zeros = words[:, :1] * 0, photo_tokens * 0

    def feed(image: Any, text: Any, has_image: bool, has_text: bool) -> dict[str, Any]:
        indicator = np.array([[has_image, has_text]], np.float32)
        mask = np.ones(text.shape[:2], np.int64)
        return {"image_tokens": image, "text_tokens": text, "text_mask": mask, "modality_indicator": indicator}

    feeds = {
        "text": feed(absent, words, False, True),
        "image": feed(photo_tokens, absent, True, False),
        "both": feed(photo_tokens, words, True, True),
    }
    # What a query runs need not be the graph (uniecs.backends.openvino.ItemRunner).
    backend = encoder._backend
    graph = backend._graph("fusion") if encoder.backend == "openvino" else backend._compile("fusion")
    turns = {name: lambda each=each: encoder._backend.run("fusion", each) for name, each in feeds.items()}
    turns |= {f"{name}, graph": lambda each=each: graph(each) for name, each in feeds.items()}
    full = feed(zeros, words, False, True)
    turns[FULL_LENGTH] = lambda: graph(full)
    return medians_ms(interleaved(turns, rounds))


FIRST = "import time, uniecs; uniecs.load('mini').encode(texts=['red kurta']); print(time.time())"


def start_up(rounds: int) -> dict[str, float]:
    """Median seconds from the start of a process to `mini`'s first embedding, and to `import openvino` alone."""
    programs = {"import openvino": "import time, openvino; print(time.time())", "cold": FIRST, "warm": FIRST}
    with tempfile.TemporaryDirectory() as cache:

        def started(name: str) -> Callable[[], float]:
            # Cold: no cache. The first turn of "warm", which does not count, fills it.
            environment = {**os.environ, "UNIECS_CACHE": cache if name == "warm" else ""}

            def run() -> float:
                begun = time.time()
                command = [sys.executable, "-c", programs[name]]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                return float(done.stdout) - begun

            return run

        turns = {name: started(name) for name in programs}
        rows = [{name: run() for name, run in turns.items()} for _ in range(rounds + 1)]
    return {name: float(np.median([row[name] for row in rows[1:]])) for name in programs}


def memory() -> dict[str, Any]:
    """Resident megabytes of a process after each tenth of `REQUESTS` mixed requests of `mini`."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import encode; encode.serve()"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    resident: list[float] = json.loads(done.stdout)
    return {"resident_mb": resident, "growth_mb": resident[-1] - resident[1]}


def serve() -> None:
    """The process of `memory`: texts, photos and both, one to eight at once, some that cannot be read."""
    import psutil

    import uniecs

    encoder, random, process = uniecs.load("mini"), np.random.default_rng(0), psutil.Process()
    photos = [photo(seed) for seed in range(8)]
    words = ["red", "blue", "cotton", "shirt", "kurta", "women", "with", "collar"]
    resident = []
    for request in range(REQUESTS):
        count = int(random.integers(1, 9)) if request % 4 == 0 else 1
        texts = [" ".join(random.choice(words, random.integers(1, 40))) for _ in range(count)]
        images = [photos[int(random.integers(8))] if random.random() > 0.02 else b"no image" for _ in range(count)]
        kind = request % 5  # three texts for one image and one of both
        sides = {"texts": None if kind == 3 else texts, "images": None if kind < 3 else images}
        encoder.encode(**sides, errors="return")
        if (request + 1) % (REQUESTS // 10) == 0:
            gc.collect()
            resident.append(round(process.memory_info().rss / 1e6, 1))
    print(json.dumps(resident))


def goals(models: Mapping[str, Any], starts: Mapping[str, float], resident: Mapping[str, Any]) -> list[Goal]:
    """The goals of issue 4 and what was measured for them."""
    base, found = models["base"], list[Goal]()
    precisions = [name for name in base["outside_share"] if not name.endswith("fp32")]
    for name in precisions:
        times, short = 6.0 if name.endswith("int8") else 3.5, name.removeprefix("uniecs openvino ")
        for kind in ("text", "image"):
            query = base["query_ms"][kind]
            found.append(Goal(f"{short} {kind} against {EAGER}", query[EAGER] / query[name], times))
            found.append(Goal(f"{short} {kind} against {ORT}", query[ORT] / query[name], 2.5))
        catalogue = base["catalogue_ms"]
        found.append(Goal(f"{short} catalogue against {EAGER}", catalogue[EAGER] / catalogue[name], 4.0))
    for name, shares in base["outside_share"].items():
        short = name.removeprefix("uniecs openvino ")
        found.append(Goal(f"{short}: share of a text query outside the graphs", shares["text"], 0.05, at_most=True))
        found.append(Goal(f"{short}: share of an image query outside the graphs", shares["image"], 0.15, at_most=True))
        each = base["fusion_ms"][name]
        found.append(Goal(f"{short}: fusion of a text alone", each[FULL_LENGTH] / each["text"], 2.5))
    found.append(Goal("s from start to the first embedding of mini", starts["warm"], 1.0, at_most=True))
    found.append(Goal(f"MB grown over {REQUESTS} requests", resident["growth_mb"], 10.0, at_most=True))
    return found


def show(name: str, model: Mapping[str, Any]) -> None:
    """Print the figures of one model."""
    print(f"\n{name} ({model['model_id']}): ms, and times faster than {EAGER}")
    rows = {**model["query_ms"], f"{CATALOGUE} photos": model["catalogue_ms"]}
    for kind, figures in rows.items():
        for contender, value in figures.items():
            print(f"  {kind:10} {contender:24} {value:10.2f} {figures[EAGER] / value:8.2f}x")
    for contender, shares in model["outside_share"].items():
        print(f"  outside the graphs, {contender}: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
    for contender, each in model["fusion_ms"].items():
        times = {name: each[f"{name}, graph"] / each[name] for name in ("text", "image", "both")}
        print(f"  fusion, {contender}: faster than the graph " + ", ".join(f"{k} {v:.2f}x" for k, v in times.items()))
        print(f"    a text than the graph at full length {each[FULL_LENGTH] / each['text']:.2f}x")


def main() -> None:
    """Measure, print, and write --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", type=Path, default=Path(tempfile.gettempdir()) / "uniecs-base-random")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    import torch
    from encode_peers import base_bundle

    from uniecs.bench.machine import describe_machine
    from uniecs.bundle import locate_bundle, open_bundle

    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()
    starts, resident = start_up(max(3, options.rounds // 6)), memory()
    models = {}
    for name, bundle in {"mini": open_bundle(locate_bundle("mini")), "base": base_bundle(options.base)}.items():
        models[name] = measure_model(bundle, options.rounds)
        show(name, models[name])
    print("\nstart (s): " + ", ".join(f"{name} {value:.2f}" for name, value in starts.items()))
    print(f"resident (MB): {resident['resident_mb']}\n")
    reached = goals(models, starts, resident)
    print("\n".join(goal.line() for goal in reached))
    if options.out:
        report = {
            "machine": describe_machine(),
            "load_before_and_after": [*load_before[:1], os.getloadavg()[0]],
            "threads": options.threads,
            "rounds": options.rounds,
            "models": models,
            "start_s": starts,
            "memory": resident,
            "goals": [{**asdict(goal), "met": goal.met()} for goal in reached],
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
