"""The C++ tokenizer: the ids of Hugging Face `tokenizers` for texts of every kind, and what it refuses to load."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from uniecs._core import BundleError, Tokenizer

CPP = Path(__file__).parents[1] / "sdk" / "cpp"
DATA = Path(os.environ.get("UNIECS_SHARED", Path(__file__).parents[2] / "shared")) / "data"
BASIC = range(0x10000)


def loaded(path: Path) -> ModuleType:
    """A script of sdk/cpp, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fuzz = loaded(CPP / "tests" / "fuzz_tokenizer.py")


def test_ids_are_those_of_hugging_face() -> None:
    outcomes = fuzz.run(60_000, seed=1, data=None, step=211, characters=BASIC)
    assert sum(outcome.texts for outcome in outcomes.values()) >= 100_000
    assert {name: outcome.first for name, outcome in outcomes.items() if outcome.mismatches} == {}


def test_ids_of_real_titles_are_those_of_hugging_face() -> None:
    if not (titles := fuzz.titles(DATA) if DATA.is_dir() else []):
        pytest.skip(f"{DATA} has no titles")
    outcome = fuzz.Outcome()
    mini = fuzz.MINI.read_bytes()
    fuzz.compare(Tokenizer(mini, 64), fuzz.Reference(mini, 64), titles, outcome)
    assert outcome.texts > 10_000
    assert outcome.first == []


@pytest.mark.parametrize("change", [{"lowercase": False}, {"strip_accents": False}, {"clean_text": False},
                                    {"handle_chinese_chars": False}])  # fmt: skip
def test_the_comparison_sees_a_step_left_out(change: dict[str, bool]) -> None:
    right = fuzz.variants(BASIC)["every character"][0]
    wrong = json.loads(right)
    wrong["normalizer"].update(change)
    outcome = fuzz.Outcome()
    texts = list(fuzz.mixes(300, random.Random(2)))
    fuzz.compare(Tokenizer(json.dumps(wrong).encode(), 64), fuzz.Reference(right, 64), texts, outcome)
    assert outcome.mismatches > 10


def test_tables_are_what_the_script_makes_of_hugging_face() -> None:
    tables = loaded(CPP / "tools" / "unicode_tables.py")
    assert tables.generate().splitlines()[2:] == tables.TARGET.read_text("utf-8").splitlines()[2:], (
        "the installed `tokenizers` treats some characters in another way: run sdk/cpp/tools/unicode_tables.py"
    )


@pytest.mark.parametrize("max_tokens", [2, 3, 4, 5, 6, 7, 8, 64])
def test_truncation_at_the_limit(max_tokens: int) -> None:
    json_bytes = fuzz.MINI.read_bytes()
    ours, reference = Tokenizer(json_bytes, max_tokens), fuzz.Reference(json_bytes, max_tokens)
    texts = ["", " ", "red", "red blue", "red zqx", "zqx red", "red[SEP]", "连衣裙", "[UNK]", "a" * 200, "red " * 200]
    assert ours.encode_batch(texts) == reference.encode(texts)
    assert max(map(len, ours.encode_batch(texts))) == max_tokens
    assert ours.vocab_size == reference.vocab_size


def test_threads_share_one_tokenizer() -> None:
    tokenizer = Tokenizer(fuzz.MINI.read_bytes(), 64)
    texts = list(fuzz.mixes(2000, random.Random(3)))
    expected = tokenizer.encode_batch(texts)
    found: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: found.append(tokenizer.encode_batch(texts))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_texts_that_are_none() -> None:
    tokenizer = Tokenizer(fuzz.MINI.read_bytes(), 64)
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode_batch(["good", "\ud800"])
    with pytest.raises(TypeError):
        tokenizer.encode_batch([7])  # type: ignore[list-item]


def bert() -> dict[str, Any]:
    """A tokenizer.json of BERT's kind, in the layout of 2020: without the model's type."""
    vocab = {token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "é", "E", "É"))}
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 2, "content": "[CLS]", **special}, {"id": 3, "content": "[SEP]", **special}],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": False},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": vocab},
    }  # fmt: skip


def test_a_cased_tokenizer_in_the_old_layout() -> None:
    json_bytes = json.dumps(bert()).encode()
    texts = ["a aa É E\u0301 é e a[SEP]a É", "aaa\u00e9", "[CLS]", "[PAD]a"]
    found = Tokenizer(json_bytes, 16).encode_batch(texts)
    assert found == fuzz.Reference(json_bytes, 16).encode(texts)
    assert found[0] == [2, 4, 4, 5, 8, 1, 6, 1, 4, 3, 4, 8, 3]


def test_added_tokens_that_overlap_go_by_the_leftmost_and_longest() -> None:
    document = bert()
    tokens = ("[x", "[x]", "[x]y]", "x]", "]y", "é", "éx", "aa", "##a", " ")
    vocab = document["model"]["vocab"]
    for token in tokens:
        vocab.setdefault(token, len(vocab))
        flags = {**document["added_tokens"][0], "special": len(token) % 2 == 0}
        document["added_tokens"].append({**flags, "content": token, "id": vocab[token]})
    json_bytes = json.dumps(document).encode()
    draw = random.Random(6)
    texts = ["".join(draw.choices("[x]yéa# \u0301", k=draw.randint(1, 12))) for _ in range(5000)]
    assert Tokenizer(json_bytes, 16).encode_batch(texts) == fuzz.Reference(json_bytes, 16).encode(texts)


def _set(*path: str | int, to: object) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return change


TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
PIECE_A = {"Sequence": {"id": "A", "type_id": 0}}
REFUSED = [
    (_set("version", to="2.0"), 'version is "2.0"'),
    (_set("colour", to=1), "colour is not supported"),
    (_set("normalizer", to=None), "normalizer is null; only BertNormalizer"),
    (_set("normalizer", to={"type": "Sequence", "normalizers": []}), 'normalizer.type is "Sequence"'),
    (_set("normalizer", "lowercase", to=1), "normalizer.lowercase is 1; expected true or false"),
    (_set("normalizer", "nfkc", to=True), "normalizer.nfkc is not supported"),
    (_set("pre_tokenizer", to={"type": "Whitespace"}), 'pre_tokenizer.type is "Whitespace"'),
    (_set("post_processor", to=None), "post_processor is null"),
    (_set("post_processor", to={"type": "RobertaProcessing"}), 'post_processor.type is "RobertaProcessing"'),
    (_set("post_processor", "sep", to=["[SEP]"]), "post_processor.sep is an array"),
    (_set("post_processor", to={**TEMPLATE, "single": [PIECE_A, PIECE_A]}), "single[1].Sequence.id"),
    (_set("post_processor", "sep", to=[3, 3]), "post_processor.sep[0] is 3; expected a string"),
    (_set("post_processor", to={**TEMPLATE, "single": []}), "post_processor.single is an array; expected the text"),
    (_set("post_processor", to={**TEMPLATE, "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, PIECE_A]}),
     "post_processor.special_tokens.[CLS] is missing"),
    (_set("model", "type", to="BPE"), 'model.type is "BPE"; only WordPiece'),
    (_set("model", "unk_token", to="<unk>"), 'model.unk_token is "<unk>"; expected a token of the vocabulary'),
    (_set("model", "dropout", to=0.1), "model.dropout is not supported"),
    (_set("model", "max_input_chars_per_word", to=0), "max_input_chars_per_word is 0"),
    (_set("model", "max_input_chars_per_word", to=100_000), "max_input_chars_per_word is 100000"),
    (_set("model", "vocab", "a", to=-1), 'model.vocab of "a" is -1'),
    (_set("model", "vocab", "a", to=2**32), 'model.vocab of "a" is 4294967296'),
    (_set("model", "vocab", "a", to="4"), 'model.vocab of "a" is "4"'),
    (_set("model", "vocab", to=[]), "model.vocab is an array; expected an object"),
    (_set("added_tokens", to=None), "added_tokens is null; expected an array"),
    (_set("added_tokens", 0, "lstrip", to=True), "added_tokens[0].lstrip is true; only false"),
    (_set("added_tokens", 0, "rstrip", to=True), "added_tokens[0].rstrip"),
    (_set("added_tokens", 1, "single_word", to=True), "added_tokens[1].single_word"),
    (_set("added_tokens", 1, "normalized", to=True), "added_tokens[1].normalized"),
    (_set("added_tokens", 1, "content", to="new"), "added_tokens[1].id is 3; only added tokens that the vocabulary"),
    (_set("added_tokens", 1, "id", to=4), "added_tokens[1].id is 4"),
    (_set("added_tokens", 1, "content", to=""), 'added_tokens[1].content is ""'),
    (lambda document: document["added_tokens"].append(document["added_tokens"][0]), "it comes twice"),
    (lambda document: document.pop("model"), "model is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_supported_is_refused_by_name(change: Callable[[dict[str, Any]], object], message: str) -> None:
    document = bert()
    change(document)
    with pytest.raises(BundleError) as refusal:
        Tokenizer(json.dumps(document).encode(), 16)
    assert str(refusal.value).startswith("tokenizer.json: ")
    assert message in str(refusal.value)


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"\xff", b"{", json.dumps(bert()).encode()[:-1]])
def test_damaged_files_are_refused(damaged: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json: "):
        Tokenizer(damaged, 16)


def test_a_limit_without_room_for_the_template_is_refused() -> None:
    with pytest.raises(BundleError, match=r"max_tokens is 1; tokenizer\.json adds 2"):
        Tokenizer(json.dumps(bert()).encode(), 1)


@pytest.fixture(scope="module")
def cmake() -> str:
    found = shutil.which("cmake")
    if found is None:
        pytest.skip("cmake is not installed")
    return found


def built(cmake: str, source: Path, folder: Path) -> Path:
    """The folder with tokenizer_ids, built for the first time or again."""
    configure = [cmake, "-S", str(source), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Debug"]
    build = [cmake, "--build", str(folder), "--parallel", "2", "--target", "tokenizer_ids"]
    for command in (configure, build):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder


def ids(folder: Path, json_path: Path, max_tokens: int, texts: list[str]) -> list[list[int]]:
    """What the program tokenizer_ids says; it must say nothing on stderr."""
    data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    result = subprocess.run(
        [folder / "tokenizer_ids", json_path, str(max_tokens)], input=data, capture_output=True, check=False
    )
    assert (result.returncode, result.stderr.decode()) == (0, "")
    return [[int(number) for number in line.split()] for line in result.stdout.decode().splitlines()]


def test_sanitizers_find_nothing(sanitized_build: Callable[[str], Path]) -> None:
    folder = sanitized_build("address,undefined")
    result = subprocess.run([folder / "json_test"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")
    texts = [*fuzz.mixes(1000, random.Random(4)), "e\u0301" * 10_000, "\u302e\u0301" * 10_000, "[SEP]" * 1000]
    expected = fuzz.Reference(fuzz.MINI.read_bytes(), 64).encode(texts)
    assert ids(folder, fuzz.MINI, 64, texts) == expected


def test_json_in_a_locale_with_commas(sanitized_build: Callable[[str], Path], comma_locale: dict[str, str]) -> None:
    program = sanitized_build("address,undefined") / "json_test"
    done = subprocess.run([program], capture_output=True, text=True, check=False, env=os.environ | comma_locale)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


# Right and wrong: a capital stays, an accent stays in its letter, a mark is kept, a mark stays where it stands.
DAMAGE = (
    ("{65,90,1,32}", "{65,89,1,32}"),
    ("{233,101,769},", ""),
    ("{789,59400},", "{789,59392},"),
    ("{12334,57344},", "{12334,0},"),
)


def test_the_comparison_sees_a_damaged_table(cmake: str, tmp_path: Path) -> None:
    source = tmp_path / "cpp"
    shutil.copytree(CPP, source)
    tables = source / "src" / "unicode_tables.cpp"
    whole = tables.read_text("utf-8")
    json_path = tmp_path / "tokenizer.json"
    json_path.write_bytes(fuzz.variants(BASIC)["every character"][0])
    texts = ["Zebra", "caf\u00e9", "a\u0315b", "x\u08d4\u302e\u08d3"]
    expected = fuzz.Reference(json_path.read_bytes(), 64).encode(texts)
    assert ids(built(cmake, source, tmp_path / "build"), json_path, 64, texts) == expected
    for i, (right, wrong) in enumerate(DAMAGE):
        assert whole.count(right) == 1, right
        tables.write_text(whole.replace(right, wrong), "utf-8")
        found = ids(built(cmake, source, tmp_path / "build"), json_path, 64, texts)
        assert [got == true for got, true in zip(found, expected, strict=True)] == [j != i for j in range(4)], right


def test_the_corpus_of_the_fuzzer_has_no_mismatch() -> None:
    """Texts of sdk/cpp/fuzz/corpus; those with a byte FF hold a tokenizer.json too."""
    reference = fuzz.Reference(fuzz.MINI.read_bytes(), 64)
    ours = Tokenizer(fuzz.MINI.read_bytes(), 64)
    seen = 0
    for path in sorted((CPP / "fuzz" / "corpus" / "tokenizer").iterdir()):
        json_bytes, both, text = path.read_bytes().partition(b"\xff")
        decoded = (text if both else json_bytes).decode("utf-8", "replace")
        assert ours.encode_batch([decoded]) == reference.encode([decoded]), path.name
        seen += 1
        if both:
            try:
                made = Tokenizer(json_bytes, 16)
            except BundleError:
                continue
            assert made.encode_batch([decoded]) == fuzz.Reference(json_bytes, 16).encode([decoded]), path.name
    assert seen >= 20
