"""Write src/unicode_tables.cpp: what Hugging Face `tokenizers` does with each code point of Unicode.

    python sdk/cpp/tools/unicode_tables.py              # rewrites the file
    python sdk/cpp/tools/unicode_tables.py --compare    # prints where `tokenizers` differs from unicodedata

The ids of a text must be those of `tokenizers`, which is built from Rust crates that each carry a Unicode version of
their own (categories of 2015, decompositions of 2019, lower case of the compiler's year). So every property is read
off `tokenizers` itself, over all code points. Python's unicodedata gives the pairs that decompositions are made of
and the numbers of combining classes; `tokenizers` decides which characters have them.
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer

TARGET = Path(__file__).parents[1] / "src" / "unicode_tables.cpp"
WIDTH = 158  # wide, as files stay under 600 lines
# Bits of src/unicode.hpp; the combining class lies above them.
REMOVED, SPACE, CJK, MARK, PUNCTUATION, DECOMPOSES, CASED = (1 << i for i in range(7))
CLASS_SHIFT = 8
SURROGATES = range(0xD800, 0xE000)
CODE_POINTS = [c for c in range(sys.maxunicode + 1) if c not in SURROGATES]
HANGUL = range(0xAC00, 0xD7A4)
DOTTED_CAPITAL_I = 0x130  # the one character whose lower case is two
HIGHEST_CLASS = "\u0345"  # of class 240


def _bert(**on: bool) -> Callable[[str], str]:
    steps = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False) | on
    normalize: Callable[[str], str] = normalizers.BertNormalizer(**steps).normalize_str
    return normalize


clean = _bert(clean_text=True)
spaced = _bert(handle_chinese_chars=True)
stripped = _bert(strip_accents=True)
lowered = _bert(lowercase=True)
decomposed: Callable[[str], str] = normalizers.NFD().normalize_str


def properties() -> list[int]:
    """The bits of every code point, surrogates 0."""
    words = BertPreTokenizer().pre_tokenize_str
    classes = combining_classes()
    found = [0] * (sys.maxunicode + 1)
    for code in CODE_POINTS:
        c = chr(code)
        split = [word for word, _ in words(f"a{c}a")]
        apart = decomposed(c)
        bits = REMOVED * (clean(c) == "") | SPACE * (split == ["a", "a"]) | PUNCTUATION * (split == ["a", c, "a"])
        bits |= CJK * (spaced(c) != c) | MARK * (stripped(c) == "" and apart == c)
        bits |= DECOMPOSES * (apart != c) | CASED * (lowered(c) != c)
        found[code] = bits | classes.get(code, 0) << CLASS_SHIFT
    _check(found)
    return found


def _check(found: Sequence[int]) -> None:
    """The steps as src/tokenizer.cpp takes them give, for each code point alone, what `tokenizers` gives."""
    for code in CODE_POINTS:
        c, bits = chr(code), found[code]
        _require(clean(c) == ("" if bits & REMOVED else " " if bits & SPACE else c), code)
        _require(spaced(c) == (f" {c} " if bits & CJK else c), code)
        _require(stripped(c) == "".join(d for d in decomposed(c) if not found[ord(d)] & MARK), code)
        _require(len(lowered(c)) == (2 if code == DOTTED_CAPITAL_I else 1), code)
    _require(lowered(chr(DOTTED_CAPITAL_I)) == "i\u0307", DOTTED_CAPITAL_I)


def _require(holds: bool, code: int) -> None:
    if not holds:
        raise SystemExit(f"tokenizers {tokenizers.__version__} does with U+{code:04X} what src/tokenizer.cpp cannot")


def combining_classes() -> dict[int, int]:
    """Code point -> canonical combining class, where it is not 0, as NFD of `tokenizers` orders them."""

    def before(c: str, other: str) -> bool:
        return c != other and decomposed(other + c) == c + other

    moving = [c for c in map(chr, CODE_POINTS) if decomposed(c) == c and before(c, HIGHEST_CLASS)]
    ladder = {unicodedata.combining(c): c for c in [HIGHEST_CLASS, *reversed(moving)]}
    found = {ord(c): max(number for number, step in ladder.items() if not before(c, step)) for c in moving}
    return found | {ord(HIGHEST_CLASS): 240}


def ranges(found: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, bits) of each stretch of code points with the same bits."""
    for code, bits in enumerate(found):
        if code == 0 or bits != found[code - 1]:
            yield code, bits


def decompositions() -> Iterator[tuple[int, int, int]]:
    """(code point, first, second or 0): the first may decompose again. Without Hangul."""
    for code in CODE_POINTS:
        if code in HANGUL or decomposed(chr(code)) == chr(code):
            continue
        first, *rest = (int(part, 16) for part in unicodedata.decomposition(chr(code)).split())
        _require(decomposed(chr(code)) == decomposed(chr(first)) + "".join(map(chr, rest)), code)
        _require(len(rest) <= 1 and len(decomposed(chr(code))) <= 4, code)
        yield code, first, *(rest or [0])


def lower_case() -> Iterator[tuple[int, int, int, int]]:
    """(first, last, step, distance): each step-th character from first to last is distance below its lower case."""
    run: tuple[int, int, int, int] | None = None
    for code in CODE_POINTS:
        c = chr(code)
        if lowered(c) == c:
            continue
        distance = ord(lowered(c)[0]) - code
        if run and run[3] == distance and code - run[1] in (1, 2) and run[2] in (0, code - run[1]):
            run = (run[0], code, code - run[1], distance)
            continue
        if run:
            yield run[0], run[1], run[2] or 1, run[3]
        run = (code, code, 0, distance)
    if run:
        yield run[0], run[1], run[2] or 1, run[3]


def table(declaration: str, rows: Iterator[tuple[int, ...]]) -> str:
    """A C++ array and its length, as many rows on a line as fit."""
    lines = [""]
    for row in rows:
        entry = "{" + ",".join(map(str, row)) + "},"
        if len(lines[-1]) + len(entry) > WIDTH:
            lines.append("")
        lines[-1] += entry
    size = declaration.split()[-1].split("[")[0] + "_COUNT"
    name = declaration.split()[-1].split("[")[0]
    body = "\n".join(lines)
    return f"const {declaration} = {{\n{body}\n}};\nconst std::size_t {size} = sizeof {name} / sizeof *{name};\n"


def generate() -> str:
    """The text of src/unicode_tables.cpp."""
    head = (
        "// Generated by tools/unicode_tables.py; do not edit.\n"
        f"// What Hugging Face tokenizers {tokenizers.__version__} does with each code point.\n"
        '#include "unicode_tables.hpp"\n\nnamespace uniecs::unicode {\n\n// clang-format off\n'
    )
    tables = [
        table("Range RANGES[]", ranges(properties())),
        table("Decomposition DECOMPOSITIONS[]", decompositions()),
        table("LowerCase LOWER_CASE[]", lower_case()),
    ]
    return head + "\n".join(tables) + "// clang-format on\n\n}  // namespace uniecs::unicode\n"


def compare() -> None:
    """Print, for each property, where `tokenizers` and this Python's unicodedata differ."""
    found = properties()

    def says(code: int, bit: int) -> bool:
        c, category = chr(code), unicodedata.category(chr(code))
        return {
            REMOVED: (category in ("Cc", "Cf", "Co") and c not in "\t\n\r") or code == 0xFFFD,
            MARK: category == "Mn",
            PUNCTUATION: category[0] == "P" or (33 <= code < 127 and not c.isalnum()),
            SPACE: c.isspace() and not 0x1C <= code <= 0x1F,
            DECOMPOSES: unicodedata.normalize("NFD", c) != c,
            CASED: c.lower() != c,
        }[bit]

    names = ("REMOVED", "SPACE", "MARK", "PUNCTUATION", "DECOMPOSES", "CASED")
    print(f"tokenizers {tokenizers.__version__} against unicodedata {unicodedata.unidata_version}")
    for name in names:
        bit = globals()[name]
        differ = [code for code in CODE_POINTS if bool(found[code] & bit) != says(code, bit)]
        print(f"{name}: {len(differ)}", " ".join(f"{code:X}" for code in differ[:12]), "..." * (len(differ) > 12))
    differ = [code for code in CODE_POINTS if found[code] >> CLASS_SHIFT != unicodedata.combining(chr(code))]
    print(f"combining class: {len(differ)}", " ".join(f"{code:X}" for code in differ[:12]))
    differ = [code for code in CODE_POINTS if lowered(chr(code)) != chr(code).lower()]
    print(f"lower case: {len(differ)}", " ".join(f"{code:X}" for code in differ[:12]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--compare", action="store_true")
    if parser.parse_args().compare:
        compare()
    else:
        TARGET.write_text(generate(), encoding="utf-8")


if __name__ == "__main__":
    main()
