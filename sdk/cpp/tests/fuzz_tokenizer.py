"""Compares the C++ tokenizer with Hugging Face `tokenizers`, id by id, on texts of every kind.

    python sdk/cpp/tests/fuzz_tokenizer.py --texts 1000000 [--data ../shared/data] [--seed 0]

Exit status 1, with the first texts that differ, unless there is none. tests/test_cpp_tokenizer.py runs a smaller one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HuggingFaceTokenizer

from uniecs._core import Tokenizer

MINI = Path(__file__).parents[2] / "uniecs" / "bundles" / "mini" / "tokenizer.json"
LAST = sys.maxunicode
ALL = range(LAST + 1)
SURROGATES = range(0xD800, 0xE000)
BATCH = 5000
# First and last of scripts and of kinds of characters.
SCRIPTS = (
    (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x370, 0x3FF), (0x400, 0x52F),
    (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F),
    (0xF00, 0xFFF), (0x10A0, 0x10FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF),
    (0x2000, 0x206F), (0x2070, 0x20CF), (0x2100, 0x214F), (0x2C00, 0x2C5F), (0x3000, 0x30FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xA640, 0xA69F), (0xA720, 0xA7FF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF),
    (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x10400, 0x1044F), (0x11080, 0x110CF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF), (0x2F800, 0x2FA1F), (0xE0000, 0xE007F),
)  # fmt: skip
MARKS = "".join(map(chr, (*range(0x300, 0x370), 0x483, 0x5B0, 0x5BC, 0x64B, 0x651, 0x93C, 0x94D, 0x1715, 0x1734, 0x1A60,
                          0x1AB0, 0x1B44, 0x1BAA, 0x1BF2, 0x1DCE, 0x20D0, 0x302A, 0x302E, 0x302F, 0x3099, 0xA953,
                          0xA9C0, 0x111C0, 0x1D165, 0x1D16D, 0x1D17B, 0x16FF0, 0x7FD, 0x1ABF)))  # fmt: skip
PIECES = (
    "[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", "[sep]", "[[SEP]", "[SEP]]", "[SE", "[SEP", "P]", "##ing", "##", "[",
    "]", "\0", "\x01", "\x7f", "\x85", "\x0b", "\x0c", "\t", "\n", "\r\n", " ", "  ", "\u00a0", "\u2028", "\u3000",
    "\u200b", "\u200c", "\u200d", "\ufeff", "\ufffd", "\ufffe", "\uffff", "\u00ad", "\ue000", "\U000f0000", "\u0378",
    "\U000e0001", "\u1100\u1161\u11a8", "\uac01", "\u11a8", "\u1112\u1175", "\u0130", "\u0131", "\u1e9e", "\u03a3",
    "\u03c2", "\u01c5", "\ufb03", "\u212b", "\u2126", "e\u0301", "\u00e9", "\u1ec7", "\u0344", "\u0f73", "\u1fee",
    "\U0001f469\u200d\U0001f4bb", "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "\u7ea2\u8272",
    "\uf900", "\U0002f800", "\U0001d15f", "\u0958", "\u09cb", "I\u0307", "\u00b5", "\u00df", "\u0345", "\u302e",
    "a" * 99, "a" * 100, "a" * 101, "\u00e9" * 100, "x" * 300, "1" * 100, "cotton", "Shirts", "unaffable", "dress",
    "blue", "Men's", "T-shirt", "50%", "\u20b9999", "\u00a320", "2XL", "don't", "100%-cotton",
)  # fmt: skip


class Reference:
    """Hugging Face's, as bundles use it."""

    def __init__(self, tokenizer_json: bytes, max_tokens: int) -> None:
        self._tokenizer = HuggingFaceTokenizer.from_str(tokenizer_json.decode())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]


@dataclass
class Outcome:
    """How many texts were compared, and the first that differ, each with the two lists of ids."""

    texts: int = 0
    mismatches: int = 0
    first: list[tuple[str, list[int], list[int]]] = field(default_factory=list)


def compare(ours: Tokenizer, reference: Reference, texts: Iterable[str], outcome: Outcome) -> None:
    """Count the texts that the two give different ids."""
    stream = iter(texts)
    while batch := list(itertools.islice(stream, BATCH)):
        for text, got, expected in zip(batch, ours.encode_batch(batch), reference.encode(batch), strict=True):
            outcome.texts += 1
            if got != expected:
                outcome.mismatches += 1
                if len(outcome.first) < 10:
                    outcome.first.append((text, got, expected))


def code_points(step: int = 1, start: int = 0) -> Iterator[str]:
    """Each step-th character alone, between letters, under marks, between marks of two classes, and as a word's end."""
    for code in range(start, LAST + 1, step):
        if code not in SURROGATES:
            c = chr(code)
            yield f"{c} a{c}b {c}\u0301{c}\u0323 \u302e{c}\u302f A{c}\u0345\u0316{c} {c}{c}"


def mixes(n: int, draw: random.Random) -> Iterator[str]:
    """Words of one script, mixes of scripts, hard pieces and marks, of up to some 60 parts."""
    for _ in range(n):
        parts: list[str] = []
        scripts = draw.choices(SCRIPTS, k=draw.choice((1, 1, 2, 4)))
        for _ in range(draw.choice((1, 3, 8, 20, 60))):
            kind = draw.random()
            if kind < 0.45:
                first, last = draw.choice(scripts)
                parts.append("".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 9))))
            elif kind < 0.65:
                parts.append(draw.choice(PIECES))
            elif kind < 0.8:
                parts.append("".join(draw.choices(MARKS, k=draw.randint(1, 5))))
            elif kind < 0.95:
                parts.append(" ")
            else:
                code = draw.randint(0, LAST)
                parts.append(chr(code) if code not in SURROGATES else "-")
        yield "".join(parts)


def damaged_words(n: int, draw: random.Random, words: list[str]) -> Iterator[str]:
    """Words of the vocabulary run together, cut and mixed: what WordPiece splits."""
    for _ in range(n):
        parts = []
        for word in draw.choices(words, k=draw.randint(1, 25)):
            start = draw.randint(0, 2)
            parts.append(draw.choice((word, word[start:], word[:-1], word.title(), word + draw.choice(words))))
            parts.append(draw.choice((" ", " ", "", "-", ", ")))
        yield "".join(parts)


def titles(data: Path) -> list[str]:
    """Titles of real products, and captions, where the folder has them."""
    found: list[str] = []
    for path in sorted(data.glob("myntra/*.parquet")):
        import pyarrow.parquet as parquet

        found += [text for text in parquet.read_table(path, columns=["title"])["title"].to_pylist() if text]
    for path in sorted(data.glob("fashioniq/captions/*.json")):
        rows = json.loads(path.read_text("utf-8"))
        found += [caption for row in rows for caption in row.get("captions", [])]
    return found


def variants(characters: range) -> dict[str, tuple[bytes, int]]:
    """Name -> (tokenizer.json, max_tokens): mini's, and others of BERT's kind that are derived from it.

    In "every character" each one of `characters` is a token, so that nothing hides behind [UNK].
    """
    mini = json.loads(MINI.read_text("utf-8"))
    vocab = mini["model"]["vocab"]
    every = dict(vocab)
    for code in characters:
        if code not in SURROGATES:
            every.setdefault(chr(code), len(every))

    def all_of(prefix: str, vocabulary: dict[str, int], max_tokens: int = 512, **normalizer: Any) -> tuple[bytes, int]:
        model = {**mini["model"], "vocab": vocabulary, "continuing_subword_prefix": prefix}
        made = {**mini, "model": model, "normalizer": {**mini["normalizer"], **normalizer}}
        return json.dumps(made).encode(), max_tokens

    cased = dict(vocab)
    for token in (*(chr(c) for c in range(65, 91)), *("##" + chr(c) for c in range(65, 91)), "Men", "É", "##É"):
        cased.setdefault(token, len(cased))
    return {
        "mini": (MINI.read_bytes(), 64),
        "every character": all_of("", every),
        "every character, cased": all_of("", every, lowercase=False),
        "every character, lower case with accents": all_of("", every, strip_accents=False),
        "every character, cased without accents": all_of("", every, lowercase=False, strip_accents=True),
        "every character, nothing cleaned": all_of("", every, clean_text=False, handle_chinese_chars=False),
        "cased": all_of("##", cased, 32, lowercase=False),
        "two tokens": all_of("##", vocab, 2),
        "three tokens": all_of("##", vocab, 3),
    }


def run(n: int, seed: int, data: Path | None, step: int = 1, characters: range = ALL) -> dict[str, Outcome]:
    """About `n` random texts over the variants, besides each step-th code point and `data`'s titles in each."""
    draw = random.Random(seed)
    real = titles(data) if data else []
    outcomes = {}
    made = variants(characters)
    words = [word.removeprefix("##") for word in json.loads(MINI.read_text("utf-8"))["model"]["vocab"]]
    for name, (tokenizer_json, max_tokens) in made.items():
        ours, reference = Tokenizer(tokenizer_json, max_tokens), Reference(tokenizer_json, max_tokens)
        outcome = outcomes[name] = Outcome()
        share = n // len(made)
        compare(ours, reference, code_points(step, draw.randrange(step)), outcome)
        compare(ours, reference, mixes(share * 2 // 3, draw), outcome)
        compare(ours, reference, damaged_words(share // 3, draw, words), outcome)
        compare(ours, reference, real, outcome)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the C++ tokenizer with Hugging Face tokenizers.")
    parser.add_argument("--texts", type=int, default=1_000_000, help="random texts, besides all code points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="the folder of development data, for real titles")
    arguments = parser.parse_args()
    start = time.monotonic()
    outcomes = run(arguments.texts, arguments.seed, arguments.data)
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome.texts} texts, {outcome.mismatches} mismatches")
        for text, got, expected in outcome.first:
            print(f"  {text!r}\n    got {got}\n    expected {expected}")
    total = sum(outcome.texts for outcome in outcomes.values())
    mismatches = sum(outcome.mismatches for outcome in outcomes.values())
    print(f"total: {total} texts, {mismatches} mismatches, {time.monotonic() - start:.0f} s")
    sys.exit(bool(mismatches))


if __name__ == "__main__":
    main()
