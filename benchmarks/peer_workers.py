"""What each peer of `peers.py` runs: a factory for each, called in a process of its own, which imports the packages.

A factory returns `Works`: the kinds of work that the peer does, each a call without arguments. Sizes are those of the
bundle, weights random where the peer cannot read the bundle's; texts, photos and vectors are the same for all.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from encode import photo, title
from index_data import K, clustered, recall, selections, worst_wanted
from index_peers import Faiss, Hnswlib, Uniecs, Usearch
from PIL import Image

PHOTOS = 32
VECTORS, QUERIES = 20_000, 200
EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
RECALL, SHARE = 0.95, 0.1
TEXT, IMAGE, BOTH, CATALOGUE = "text query", "image query", "image+text query", f"catalogue, {PHOTOS} photos"
BACKBONE = "the text backbone without fusion: less work than ours"
SEARCH, FILTERED = "search", f"filtered search, {SHARE:.0%} match"


@dataclass(frozen=True)
class Works:
    """Kind of work -> a call that does it once; `notes` say what is not alike, by kind of work or "" for all."""

    calls: Mapping[str, Callable[[], object]]
    notes: Mapping[str, str] = field(default_factory=dict)
    folder: object = None  # of files that go when this goes


Factory = Callable[[Any, int], Works]
"""A bundle and the number of threads to `Works`."""


def encoder_works(encoder: Any, bundle: Any, kinds: tuple[str, ...] = (TEXT, IMAGE, BOTH, CATALOGUE)) -> Works:
    """Of anything with `encode(texts=, images=)` as `uniecs.Encoder` has it."""
    text, jpeg, many = title(bundle), photo(0), [photo(seed) for seed in range(PHOTOS)]
    calls: dict[str, Callable[[], object]] = {
        TEXT: lambda: encoder.encode(texts=[text]),
        IMAGE: lambda: encoder.encode(images=[jpeg]),
        BOTH: lambda: encoder.encode(texts=[text], images=[jpeg]),
        CATALOGUE: lambda: encoder.encode(images=many),
    }
    return Works({kind: calls[kind] for kind in kinds})


def uniecs_in(precision: str) -> Factory:
    """Ours, as `uniecs.load` makes it."""

    def make(bundle: Any, threads: int) -> Works:
        import uniecs

        return encoder_works(uniecs.load(bundle.path, precision=precision, threads=threads), bundle)

    return make


def sentence_transformers(bundle: Any, threads: int) -> Works:
    """The whole network as its modules, in torch."""
    import torch
    from encode_peers import SentenceTransformers

    torch.set_num_threads(threads)
    return encoder_works(SentenceTransformers(bundle), bundle)


def engine_with(name: str, as_fastembed: bool = False) -> Factory:
    """Our preprocessing and graphs around an engine as others set it up."""

    def make(bundle: Any, threads: int) -> Works:
        import uniecs
        from uniecs.bench.plain_engines import PlainBackend

        backend = PlainBackend(bundle, name, threads if as_fastembed else None)
        return encoder_works(uniecs.Encoder(bundle, backend, threads), bundle)

    return make


def saved_bert(bundle: Any) -> tempfile.TemporaryDirectory[str]:
    """A folder of the bundle's text backbone with random weights, as transformers saves it."""
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    text = bundle.manifest["model"]["text"]
    folder = tempfile.TemporaryDirectory(prefix="uniecs-peers-")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        intermediate_size=text["intermediate"],
        max_position_embeddings=text["max_positions"],
    )
    BertModel(config).eval().save_pretrained(folder.name)
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    words = PreTrainedTokenizerFast(tokenizer_file=str(bundle.path / "tokenizer.json"), **special)
    words.save_pretrained(folder.name)
    return folder


def sentence_transformers_on(backend: str) -> Factory:
    """Its ONNX or OpenVINO backend, which takes a text model alone."""

    def make(bundle: Any, threads: int) -> Works:
        from sentence_transformers import SentenceTransformer

        folder = saved_bert(bundle)
        model = SentenceTransformer(folder.name, backend=backend, device="cpu")
        text = title(bundle)
        call = {TEXT: lambda: model.encode([text], normalize_embeddings=True, show_progress_bar=False)}
        return Works(call, {"": BACKBONE}, folder)

    return make


def optimum_onnx(bundle: Any, threads: int) -> Works:
    """optimum's own model class on ONNX Runtime."""
    import torch
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer

    folder = saved_bert(bundle)
    model = ORTModelForFeatureExtraction.from_pretrained(folder.name, export=True)
    words, text = AutoTokenizer.from_pretrained(folder.name), title(bundle)

    def call() -> object:
        with torch.inference_mode():
            return model(**words([text], return_tensors="pt")).last_hidden_state.mean(dim=1)

    return Works({TEXT: call}, {"": BACKBONE}, folder)


def open_clip(bundle: Any, threads: int) -> Works:
    """Its CLIP of the same widths and depths, its tokenizer (77 tokens, padded) and its transforms."""
    import torch

    note = import_torchvision()
    import open_clip

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, p = bundle.manifest["model"], bundle.preprocessing
    image, text = model["image"], model["text"]
    size = (p.height_px, p.width_px)
    network = open_clip.CLIP(
        embed_dim=model["embed_dim"],
        vision_cfg={
            "layers": image["layers"],
            "width": image["hidden"],
            "head_width": image["hidden"] // image["heads"],
            "mlp_ratio": image["intermediate"] / image["hidden"],
            "patch_size": image["patch_px"],
            "image_size": size,
        },
        text_cfg={"layers": text["layers"], "width": text["hidden"], "heads": text["heads"]},
    ).eval()
    transform = open_clip.image_transform(size, is_train=False)
    words = open_clip.SimpleTokenizer()

    class Encoder:
        """Embeddings of both sides are added."""

        def encode(self, texts: Any = None, images: Any = None) -> Any:
            with torch.inference_mode():
                found = []
                if texts:
                    found.append(network.encode_text(words(texts), normalize=True))
                if images:
                    pictures = [transform(Image.open(io.BytesIO(each))) for each in images]
                    found.append(network.encode_image(torch.stack(pictures), normalize=True))
                return sum(found).numpy()

    notes = {"": "CLIP without fusion: less work than ours, but 77 tokens for every text" + note}
    return Works(encoder_works(Encoder(), bundle).calls, notes)


def import_torchvision() -> str:
    """Import torchvision even where its native operators do not load beside this torch; returns what to say of it.

    PyPI's torchvision is built for CUDA, and cannot load them beside a torch without. Its transforms do not use them.
    """
    import importlib
    import sys
    from types import ModuleType

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        registers = "torchvision._meta_registrations"  # what fails: it tells torch of the operators that are not there
        sys.modules[registers] = ModuleType(registers)
        importlib.import_module("torchvision")
        return "; torchvision without its native operators, which its transforms do not use"
    return ""


def transformers_clip(bundle: Any, threads: int) -> Works:
    """transformers' CLIPModel of the same widths and depths, with its image processor and a fast tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, p = bundle.manifest["model"], bundle.preprocessing
    side = max(p.height_px, p.width_px)

    def sizes(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": part["hidden"],
            "num_hidden_layers": part["layers"],
            "num_attention_heads": part["heads"],
            "intermediate_size": part["intermediate"],
        }

    config = CLIPConfig(
        text_config={**sizes(model["text"]), "vocab_size": model["text"]["vocab_size"], "eos_token_id": 3},
        vision_config={**sizes(model["image"]), "patch_size": model["image"]["patch_px"], "image_size": side},
        projection_dim=model["embed_dim"],
    )
    network = CLIPModel(config).eval()
    words = PreTrainedTokenizerFast(tokenizer_file=str(bundle.path / "tokenizer.json"), pad_token="[PAD]")
    pictures = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    class Encoder:
        """Both sides through the model as its documentation shows; embeddings of both are added."""

        def encode(self, texts: Any = None, images: Any = None) -> Any:
            with torch.inference_mode():
                found = []
                if texts:
                    given = words(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
                    found.append(_features(network.get_text_features(**given)))
                if images:
                    opened = [Image.open(io.BytesIO(each)).convert("RGB") for each in images]
                    found.append(_features(network.get_image_features(**pictures(opened, return_tensors="pt"))))
                return sum(each / each.norm(dim=-1, keepdim=True) for each in found).numpy()

    return Works(encoder_works(Encoder(), bundle).calls, {"": "CLIP without fusion: less work than ours"})


def _features(output: Any) -> Any:
    """A tensor of older versions, or the pooled part of an output."""
    return getattr(output, "pooler_output", output)


def index_of(make: Callable[[int], Any]) -> Factory:
    """An index of clustered vectors, searched on one thread with the least breadth that finds `RECALL`."""

    def works(bundle: Any, threads: int) -> Works:
        data = clustered(VECTORS, QUERIES)
        contender = make(VECTORS)
        contender.add(data.vectors, 0, threads)
        calls: dict[str, Callable[[], object]] = {}
        notes = {}
        mask = next(mask for kind, share, mask in selections(data.vectors, (SHARE,)) if kind == "random")
        searches: dict[str, tuple[Callable[..., Any], Any]] = {SEARCH: (contender.search, None)}
        if hasattr(contender, "filtered") and not isinstance(contender, Hnswlib):  # its callback takes seconds
            searches[FILTERED] = (contender.filtered(mask), mask)
        for kind, (search, allowed) in searches.items():
            worst = worst_wanted(data.vectors, data.queries, allowed)
            for ef in EFS:
                found = recall(search(data.queries, ef, 1), data.vectors, data.queries, worst, allowed)
                if found >= RECALL:
                    break
            calls[kind] = lambda search=search, ef=ef: search(data.queries, ef, 1)
            notes[kind] = f"recall@{K} {found:.3f}, {QUERIES} queries a call"
        return Works(calls, notes)

    return works


def native(count: int) -> Any:
    """Our graph."""
    return Uniecs("float32")


PEERS: Mapping[str, tuple[Factory, tuple[str, ...]]] = {
    "uniecs fp32": (uniecs_in("fp32"), ("uniecs", "openvino")),
    "uniecs bf16": (uniecs_in("bf16"), ("uniecs", "openvino")),
    "uniecs int8": (uniecs_in("int8"), ("uniecs", "openvino")),
    "sentence-transformers, torch": (sentence_transformers, ("sentence-transformers", "torch", "transformers")),
    "sentence-transformers, ONNX": (
        sentence_transformers_on("onnx"),
        ("sentence-transformers", "optimum", "optimum-onnx", "onnxruntime"),
    ),
    "sentence-transformers, OpenVINO": (
        sentence_transformers_on("openvino"),
        ("sentence-transformers", "optimum-intel", "openvino"),
    ),
    "open_clip": (open_clip, ("open_clip_torch", "torch", "torchvision")),
    "transformers, CLIPModel": (transformers_clip, ("transformers", "torch", "torchvision")),
    "optimum, ONNX Runtime": (optimum_onnx, ("optimum", "optimum-onnx", "onnxruntime")),
    "fastembed's runtime": (engine_with("onnxruntime", as_fastembed=True), ("fastembed", "onnxruntime")),
    "ONNX Runtime, defaults": (engine_with("onnxruntime"), ("onnxruntime",)),
    "OpenVINO, defaults": (engine_with("openvino"), ("openvino",)),
    "uniecs index": (index_of(native), ("uniecs",)),
    "hnswlib": (index_of(Hnswlib), ("hnswlib",)),
    "faiss": (index_of(Faiss), ("faiss-cpu",)),
    "usearch": (index_of(Usearch), ("usearch",)),
}
"""Name -> its factory, and the packages whose versions are recorded."""
