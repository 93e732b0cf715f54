"""The command line: output, JSON, exit status, and one clear line for every error."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import subprocess
import sys
import types
from argparse import ArgumentTypeError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uniecs import __version__, cli, cli_io, cli_search, doctor
from uniecs.encoder import EncodeResult
from uniecs.errors import InputError, ParityError, UniecsError

WORDS = ["red", "blue", "kurta", "jeans"]


class FakeEncoder:
    """A text is its known words, an image its mean colour (red, blue); both are their sum."""

    embed_dim, model_id, backend, device, precision = 4, "fake-0123456789abcdef", "openvino", "cpu", "fp32"
    views = ("text", "image", "multimodal")

    def __init__(self, path: Path) -> None:
        self.bundle = SimpleNamespace(path=path, name="fake")

    def encode(self, texts: Any = None, images: Any = None, *, errors: str = "raise", batch_size: int = 32) -> Any:
        texts, images = texts or [None] * len(images), images or [None] * len(texts)
        rows = np.full((len(texts), 4), np.nan, dtype=np.float32)
        failed: dict[int, UniecsError] = {}
        for i, (text, image) in enumerate(zip(texts, images, strict=True)):
            vector = np.full(4, 0.01)
            if text is not None:
                vector += [word in text for word in WORDS]
            if image is not None and not Path(image).is_file():
                failed[i] = InputError(f"image {image} does not exist")
                continue
            if image is not None:
                red, _, blue = np.asarray(Image.open(image)).mean(axis=(0, 1)) / 255
                vector[:2] += red, blue
            rows[i] = vector / np.linalg.norm(vector)
        if failed and errors == "raise":
            raise next(iter(failed.values()))
        return EncodeResult(rows, failed) if errors == "return" else rows


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shop.csv (four good rows, three bad ones) and photos; `load` gives the fake encoder."""
    monkeypatch.setattr("uniecs.encoder.load", lambda *args, **options: FakeEncoder(tmp_path / "fake-bundle"))
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / "blue.png")
    rows = [
        "id,title,image,colour,price",
        "1,red kurta,red.png,red,20",
        "2,blue kurta,blue.png,blue,30",
        "3,red jeans,red.png,red,40",
        "4,blue jeans,,blue,50",
        "5,,,red,1",
        "6,red kurta,missing.png,red,1",
        "1,red kurta,red.png,red,1",
    ]
    (tmp_path / "shop.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def run(*argv: object) -> int:
    return cli.main([str(each) for each in argv])


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit) as exit_:
            run(option)
        assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"uniecs {__version__}" in out
    for command in ("demo", "index", "search", "train", "eval", "export", "quantize", "verify", "embed", "doctor"):
        assert f"    {command} " in out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["index", "shop.csv"],
        ["search", "shop.uniecs"],
        ["search", "shop.uniecs", "--text", "red", "-k", "many"],
        ["search", "shop.uniecs", "--text", "red", "--where", "colour"],
        ["search", "shop.uniecs", "--text", "red", "--where", "a=1", "--where", "a=2"],
        ["export", "checkpoint", "--out", "bundle", "--pairs", "pairs.csv"],
        ["eval", "mini", "--catalog", "shop.csv"],
        ["train"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*argv)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: uniecs" in captured.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gender=Women", ("gender", "Women")),
        ("colour=red,blue", ("colour", ["red", "blue"])),
        ('brand="Marks, Spencer",Puma', ("brand", ["Marks, Spencer", "Puma"])),
        ("colour=red, blue", ("colour", ["red", "blue"])),
        ('brand="Marks, Spencer", " Puma"', ("brand", ["Marks, Spencer", " Puma"])),
        ("price= 10 .. 50", ("price", (10, 50))),
        ("year=2010", ("year", [2010, "2010"])),
        ("sale=true", ("sale", [True, "true"])),
        ("size=8.5,M", ("size", [8.5, "8.5", "M"])),
        ("code=1234567890123456789", ("code", [1234567890123456789, "1234567890123456789"])),
        ("code=9223372036854775808", ("code", "9223372036854775808")),
        ("price=..50", ("price", (None, 50))),
        ("price=10..", ("price", (10, None))),
        ("price=-1.5..2e3", ("price", (-1.5, 2000.0))),
        ("code=a..b", ("code", "a..b")),
        ("code=1..b", ("code", "1..b")),
        ("code=..", ("code", "..")),
        ("code=nan", ("code", "nan")),
        ("code=1_0", ("code", "1_0")),
        ("code=1e999", ("code", "1e999")),
        ("code=a=b", ("code", "a=b")),
        ('code="a\nb"', ("code", "a\nb")),
    ],
)
def test_where_conditions(text: str, expected: tuple[str, Any]) -> None:
    key, value = cli_search.parse_condition(text)
    assert (key, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize("text", ["", "=", "key", "key=", "=value", "key=\n", "key=a\nb"])
def test_where_refuses_half_conditions(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected key=value"):
        cli_search.parse_condition(text)


def test_index_reports_rejected_rows_and_goes_on(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("index", shop / "shop.csv", "--out", shop / "shop.uniecs") == 0
    captured = capsys.readouterr()
    assert "4 products added, 3 rows rejected" in captured.out
    assert [line[:14] for line in captured.err.splitlines()] == [
        "rejected row 4",
        "rejected row 5",
        "rejected row 6",
    ]


def test_index_as_json(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("index", shop / "shop.csv", "--out", shop / "shop.uniecs", "--json", "--views", "text,image") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["added"], report["views"]) == (4, ["text", "image"])
    assert [each["row"] for each in report["rejected"]] == [4, 5, 6]
    assert "missing.png" in report["rejected"][1]["reason"]


def test_index_of_nothing_fails(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["id,title", *("," for _ in range(30))]
    (shop / "empty.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert run("index", shop / "empty.csv", "--out", shop / "empty.uniecs") == 1
    err = capsys.readouterr().err.splitlines()
    assert not (shop / "empty.uniecs").exists()
    assert len(err) == cli_io.SHOWN_REJECTIONS + 1
    assert err[-1] == "and 10 more rejected rows"


@pytest.mark.parametrize("command", ["index", "embed"])
def test_a_catalogue_without_rows_fails(shop: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "header.csv").write_text("id,title\n", encoding="utf-8")
    assert run(command, shop / "header.csv", "--out", shop / "new.npz") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"uniecs: error: {shop / 'header.csv'} has no rows\n")
    assert not (shop / "new.npz").exists()


@pytest.fixture
def index(shop: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run("index", shop / "shop.csv", "--out", shop / "shop.uniecs") == 0
    capsys.readouterr()
    return shop / "shop.uniecs"


def found(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Ids of the hits on stdout, sorted."""
    return sorted(hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"])


def test_search_by_text_image_and_both(index: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", index, "--text", "blue jeans", "-k", 1, "--json") == 0
    hit = json.loads(capsys.readouterr().out)["hits"][0]
    assert (hit["id"], hit["title"], hit["attributes"]["colour"]) == ("4", "blue jeans", "blue")
    assert hit["score"] == pytest.approx(1.0, abs=1e-4)
    assert run("search", index, "--image", shop / "red.png", "-k", 2, "--json") == 0
    assert found(capsys) == ["1", "3"]
    assert run("search", index, "--text", "kurta", "--image", shop / "blue.png", "-k", 1) == 0
    assert capsys.readouterr().out.split()[2:] == ["2", "blue", "kurta"]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["colour=red"], ["1", "3"]),
        (["price=30"], ["2"]),
        (["price=30.."], ["2", "3", "4"]),
        (["price=20..40", "colour=blue"], ["2"]),
        (["colour=red,blue", "price=..20"], ["1"]),
        (["colour=green"], []),
    ],
)
def test_search_with_filters(
    index: Path, conditions: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    filters = [argument for each in conditions for argument in ("--where", each)]
    assert run("search", index, "--text", "kurta", "--json", *filters) == 0
    assert found(capsys) == expected


def test_search_takes_a_bundle_that_was_moved(
    index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def load(name: object, **options: object) -> FakeEncoder:
        given.append(name)
        return FakeEncoder(index)

    monkeypatch.setattr("uniecs.encoder.load", load)
    for options in ([], ["--model", "moved"]):
        assert run("search", index, "--text", "blue jeans", "-k", 1, "--json", *options) == 0
        assert found(capsys) == ["4"]
    assert given == [str(index.parent / "fake-bundle"), "moved"]


def test_search_says_when_nothing_matches(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", index, "--text", "kurta", "--where", "colour=green") == 0
    assert capsys.readouterr().out == "no hits\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["search", "{}/shop.uniecs", "--text", "red", "--where", "nonsense=1"],
        ["search", "{}/shop.uniecs", "--text", "red", "--view", "nonsense"],
        ["search", "{}/shop.uniecs", "--image", "{}/missing.png"],
        ["search", "{}/missing.uniecs", "--text", "red"],
        ["index", "{}/missing.csv", "--out", "{}/new.uniecs"],
        ["index", "{}/shop.csv", "--out", "{}/new.uniecs", "--views", "smell"],
        ["verify", "{}"],
        ["eval", "mini", "--catalog", "{}/shop.csv", "--pairs", "{}/shop.csv"],
        ["embed", "{}/shop.csv", "--out", "{}/vectors.txt"],
        ["embed", "{}/shop.csv", "--out", "{}/no/such/folder/vectors.npz"],
    ],
)
def test_errors_are_one_line(index: Path, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*(each.replace("{}", str(index.parent)) for each in argv)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("uniecs: error: ")
    assert captured.err.count("\n") == 1


def test_embed_writes_ids_and_embeddings(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("embed", shop / "shop.csv", "--out", shop / "vectors.npz", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["embedded"] == 4
    assert [each["row"] for each in report["rejected"]] == [4, 5, 6]
    with np.load(shop / "vectors.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["1", "2", "3", "4"]
        expected = FakeEncoder(shop).encode(["red kurta", "blue jeans"], [str(shop / "red.png"), None])
        np.testing.assert_array_equal(arrays["embeddings"][[0, 3]], expected)
    assert not list(shop.glob("*.partial"))


def test_embed_takes_the_first_row_of_an_id_that_can_be_read(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "twice.csv").write_text("id,title,image\n7,red kurta,missing.png\n7,red kurta,red.png\n7,jeans,\n", "utf-8")
    assert run("embed", shop / "twice.csv", "--out", shop / "vectors.npz", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["embedded"], [each["row"] for each in report["rejected"]]) == (1, [0, 2])


def test_embed_refuses_ids_that_an_array_cannot_hold(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": each, "title": "red"} for each in ("a\0", "a", "\0a")]
    (shop / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("embed", shop / "odd.jsonl", "--out", shop / "vectors.npz") == 0
    assert "rejected row 0 (id a\0): the id 'a\\x00' ends in a NUL" in capsys.readouterr().err
    with np.load(shop / "vectors.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["a", "\0a"]


def test_embed_refuses_where_it_cannot_write_before_it_embeds(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uniecs.encoder.load", lambda *args, **options: pytest.fail("it loads the model first"))
    (shop / "folder.npz").mkdir()
    for out in ("no/such/x.npz", "folder.npz"):
        assert run("embed", shop / "shop.csv", "--out", shop / out) == 1
        assert f"uniecs: error: {shop / out} " in capsys.readouterr().err


def test_embed_of_nothing_writes_nothing(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "empty.csv").write_text("id,title\n1,\n", encoding="utf-8")
    assert run("embed", shop / "empty.csv", "--out", shop / "vectors.npz") == 1
    assert not (shop / "vectors.npz").exists()
    assert "0 products embedded, 1 rows rejected" in capsys.readouterr().out


def test_eval_prints_a_table_or_json(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="the TF-IDF baseline needs scikit-learn")
    (shop / "pairs.csv").write_text("trigger_id,recall_id\n1,3\n2,1\n", encoding="utf-8")
    argv = ("eval", "mini", "--catalog", shop / "shop.csv", "--pairs", shop / "pairs.csv")
    assert run(*argv, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tasks"]["t>t"]["1"] == 1.0  # the red kurta, a candidate of the blue one, is none of its own
    assert report["tasks"]["v>v"]["1"] == 0.5  # both candidates of the blue one have the same photo
    assert set(report["baselines"]) == {"tfidf", "raw_pixels"}
    assert run(*argv) == 0
    assert "R@10" in capsys.readouterr().out
    several = ("eval", "mini", "mini", *argv[2:])
    assert run(*several, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [report, report]
    assert run(*several) == 0
    lines = capsys.readouterr().out.splitlines()
    row = f"| {report['model_id']} | {'/'.join(f'{share:.3f}' for share in report['tasks']['t>t'].values())} |"
    assert [line.startswith(row) for line in lines].count(True) == 2
    assert lines[-2].startswith("| tfidf | ")
    assert lines[-1].count("|") == lines[-2].count("|") == 11


def test_verify_fails_on_a_breach(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from uniecs.export import verify

    row = verify.VerifyRow("openvino", "cpu", "fp32", "fusion", 0.5, 1e-6, 0.1, 0.1, ok=False)
    good = verify.VerifyRow("openvino", "cpu", "fp32", "fusion", 0.0, 1e-6, 0.0, 0.0, ok=True)
    monkeypatch.setattr("uniecs.bundle.locate_bundle", Path)
    for rows, status in (((good, row), 1), ((good,), 0)):
        report = verify.VerifyReport(Path("bundle"), "fake-0", rows, ())
        monkeypatch.setattr(verify, "verify_bundle", lambda path, report=report: report)
        assert run("verify", "bundle", "--json") == status
        captured = capsys.readouterr()
        assert json.loads(captured.out)["ok"] is (status == 0)
        assert captured.err.startswith("uniecs: error: 1 of 2 checks") == (status == 1)


def test_doctor_reports_what_is_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("uniecs.encoder.load", lambda name: FakeEncoder(Path(name)))
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["default"]["chosen"] == "fake-0123456789abcdef on openvino, device cpu, fp32"
    assert {each["name"]: each["version"] for each in report["packages"]}["numpy"] == np.__version__
    assert set(report["backends"]) == {"openvino", "onnxruntime", "tensorrt"}

    def broken(name: str) -> None:
        raise UniecsError("the bundle is cut off")

    monkeypatch.setattr("uniecs.encoder.load", broken)
    assert run("doctor") == 1
    out = capsys.readouterr().out
    assert 'load("mini") does NOT work' in out
    assert "the bundle is cut off" in out


def test_doctor_explains_two_onnxruntimes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    installed = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0", "numpy": "2"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_default", lambda: {"model": "mini", "works": True, "chosen": "x", "why": "y"})
    monkeypatch.setattr(doctor, "_models", list)
    report = doctor.examine()
    (conflict,) = report["conflicts"]
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 are both installed" in conflict
    assert "finds onnxruntime" in conflict
    assert "CPUExecutionProvider" in conflict
    assert f"CONFLICT: {conflict}" in doctor.format_report(report)
    broken = types.ModuleType("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", broken)
    assert "`import onnxruntime` fails: " in doctor._conflicts(installed)[0]
    for name in ("onnxruntime", "onnxruntime-gpu"):
        assert doctor._conflicts({**installed, name: None}) == []


def test_doctor_tells_where_compiled_graphs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIECS_CACHE", "")
    assert doctor._cache().startswith("not kept")
    monkeypatch.setenv("UNIECS_CACHE", str(tmp_path))
    (tmp_path / "a.blob").write_bytes(bytes(2_000_000))
    assert doctor._cache() == f"1 in {tmp_path} (2 MB)"
    tmp_path.chmod(0o777)
    assert "NOT USED" in doctor._cache()
    monkeypatch.setenv("UNIECS_CACHE", str(tmp_path / "later"))
    assert doctor._cache() == f"0 in {tmp_path / 'later'} (0 MB)"


@pytest.mark.parametrize(("command", "extra"), [("train --config x", "train"), ("export x --out y", "export")])
def test_a_missing_extra_is_named(
    command: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [each for each in sys.modules if each.startswith(("uniecs.trainer", "uniecs.export"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(*command.split()) == 1
    err = capsys.readouterr().err
    assert f"uniecs: error: uniecs {extra} needs torch: pip install 'uniecs[{extra}]'" in err


def test_a_missing_module_of_our_own_is_not_called_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uniecs.trainer.loop", None)
    with pytest.raises(ModuleNotFoundError):
        run("train", "--config", "x")


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "uniecs: interrupted\n"),
        (ParityError("two\nlines"), 1, "uniecs: error: two lines\n"),
        (OSError("disk full"), 1, "uniecs: error: disk full\n"),
    ],
)
def test_exit_status(
    raised: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr("uniecs.encoder.load", fail)
    assert run("embed", "shop.csv", "--out", "vectors.npz") == status
    assert capsys.readouterr() == ("", line)


def test_as_a_process_without_heavy_imports() -> None:
    script = "import sys, uniecs.cli; uniecs.cli.build_parser(); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for heavy in ("torch", "openvino", "onnxruntime", "hnswlib", "PIL", "tokenizers"):
        assert f"'{heavy}'" not in result.stdout
    script = "import sys, uniecs.cli; sys.exit(uniecs.cli.main(['search', 'none.uniecs', '--text', 'red']))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("uniecs: error: ")
    assert "Traceback" not in result.stderr


def test_a_reader_that_leaves_is_no_traceback() -> None:
    script = (
        "import sys, uniecs.cli, uniecs.doctor\n"
        "uniecs.doctor.examine = lambda: {'default': {'works': True}}\n"
        "sys.exit(uniecs.cli.main(['doctor', '--json']))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


def test_a_closed_stdout_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: {"default": {"works": True}})
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-
    assert run("doctor", "--json") == 0


def test_a_closed_stderr_leaves_stdout_to_results(shop: Path) -> None:
    script = "import sys, uniecs.cli; sys.exit(uniecs.cli.main(['search', 'none.uniecs', '--text', 'red']))"
    closed = f"import os; os.close(2); os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {script!r}])"
    result = subprocess.run([sys.executable, "-c", closed], stdout=subprocess.PIPE, cwd=shop, check=False)
    assert (result.returncode, result.stdout) == (1, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_titles_that_stdout_cannot_show(shop: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop / "shop.csv").write_text("id,title\n1,red café 浴衣 👘\n", encoding="utf-8")
    assert run("index", shop / "shop.csv", "--out", shop / "shop.uniecs") == 0
    written = {}
    for option in ("--text=red", "--json"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        assert run("search", shop / "shop.uniecs", "--text", "red", option) == 0
        written[option] = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    shown = {
        "ascii": r"red caf\xe9 \u6d74\u8863 \U0001f458",
        "latin-1": r"red café \u6d74\u8863 \U0001f458",
        "utf-8": "red café 浴衣 👘",
    }
    assert written["--text=red"].endswith(f"  1  {shown[encoding]}\n")
    assert json.loads(written["--json"])["hits"][0]["title"] == "red café 浴衣 👘"


def test_a_real_bundle_end_to_end(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (30, 40), (200, 20, 20)).save(tmp_path / "red.jpg")
    (tmp_path / "shop.csv").write_text("id,title,image\n1,red kurta,red.jpg\n2,blue bag,\n", encoding="utf-8")
    assert run("verify", tiny_bundle) == 0
    assert "every check holds" in capsys.readouterr().out
    assert run("index", tmp_path / "shop.csv", "--out", tmp_path / "shop.uniecs", "--model", tiny_bundle) == 0
    query = ("--text", "red kurta", "--image", tmp_path / "red.jpg", "-k", 1, "--json")
    capsys.readouterr()
    assert run("search", tmp_path / "shop.uniecs", *query) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert (hit["id"], hit["score"]) == ("1", pytest.approx(1.0, abs=1e-5))
