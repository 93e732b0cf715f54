"""Reading products from every kind of source, row by row."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from uniecs.catalog import Product, Rejected, read_catalog
from uniecs.errors import CatalogError, InputError, TextError


def read(source: object) -> list[Product | Rejected]:
    return list(read_catalog(source))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def reason(item: Product | Rejected) -> str:
    assert isinstance(item, Rejected), item
    return str(item.error)


def test_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path / "shop.CSV",
        '\ufeffid,title,image,colour,price\n007,"red, long\nkurta",a.jpg,Red,49.5\n8,,b.jpg,,\n\n9,浴衣 👘,,,1\n',
    )
    assert read(path) == [
        Product("007", "red, long\nkurta", str(tmp_path / "a.jpg"), {"colour": "Red", "price": "49.5"}),
        Product("8", None, str(tmp_path / "b.jpg"), {}),
        Product("9", "浴衣 👘", None, {"price": "1"}),
    ]


def test_csv_images_are_found_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shop.csv", "id,image\n1,a.jpg\n2,/data/b.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert [item.image for item in read("shop.csv") if isinstance(item, Product)] == [
        str(tmp_path / "a.jpg"),
        "/data/b.jpg",
    ]


def test_an_address_of_an_image_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "shop.csv", "id,title,image\n1,shirt,https://shop.example/a.jpg\n")
    assert read(path) == [Product("1", "shirt", "https://shop.example/a.jpg")]


def test_csv_rows_that_are_wrong_are_rejected_alone(tmp_path: Path) -> None:
    huge = "x" * 200_000
    data = (
        b"id,title,colour\n1,ok,red\n2,short\n3,a,b,c\n4,caf\xe9,red\n5,"
        + huge.encode()
        + b",red\n,none,red\n7,,\n8,ok,\n"
    )
    items = read(write(tmp_path / "shop.csv", data))
    assert [isinstance(item, Product) for item in items] == [True, False, False, False, False, False, False, True]
    assert "has 2 cells; expected 3" in reason(items[1])
    assert "has 4 cells; expected 3" in reason(items[2])
    assert "not valid Unicode" in reason(items[3])
    assert "is not CSV" in reason(items[4])
    assert "id is None" in reason(items[5])
    assert "neither a title nor an image" in reason(items[6])
    assert isinstance(items[3], Rejected) and (items[3].row, items[3].id) == (3, "4")


def test_csv_quotes_that_are_wrong_take_no_rows_unseen(tmp_path: Path) -> None:
    text = 'id,title\n1,"a\nb"\n2,"5 inch lamp\n3,hat\n4,"old" shoe\n5,"cap\n6,hat","\n7,5"\n8,5"\n'
    items = read(write(tmp_path / "shop.csv", text))
    assert [isinstance(item, Product) for item in items] == [True, False, False, True]
    assert "line 4-6 is not CSV" in reason(items[1])
    assert "line 7-9 has 3 cells" in reason(items[2])
    assert items[3] == Product("8", '5"')
    for rest in ("3,hat\n4,bag\n", "3,hat\n" * 30_000):  # csv itself gives up in a cell of 131,072 characters
        items = read_catalog(write(tmp_path / "open.csv", f'id,title\n1,hat\n2,"5 inch lamp\n{rest}'))
        assert next(items) == Product("1", "hat")
        with pytest.raises(CatalogError, match="quote in line 3 that is not closed"):
            next(items)


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        {"id": 1, "title": "shirt", "sizes": ["S", "M"], "price": 9.5, "sale": True, "brand": None, "note": ""},
        {"id": "2", "image": {"bytes": None, "path": "a.jpg"}, "attributes": {"colour": "red"}},
    ]
    path = write(tmp_path / "shop.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert read(path) == [
        Product("1", "shirt", None, {"sizes": ["S", "M"], "price": 9.5, "sale": True}),
        Product("2", None, str(tmp_path / "a.jpg"), {"colour": "red"}),
    ]


def test_jsonl_rows_that_are_wrong_are_rejected_alone(tmp_path: Path) -> None:
    lines = [
        b'{"id": "1", "title": "ok"}',
        b'{"id": "2", "title": "cut o',
        b'["3", "list"]',
        b'{"id": "4", "title": 5}',
        b'{"id": "5", "title": "\\ud800"}',
        b'{"id": "6", "title": "x", "price": 1e999}',
        b'{"id": "7", "title": "x", "size": {"eu": 40}}',
        b'{"id": 1.5, "title": "x"}',
        b"[" * 100_000,
        b'{"id": "\xff", "title": "x"}',
        b'{"id": "11", "title": "ok", "price": NaN}',
    ]
    items = read(write(tmp_path / "shop.jsonl", b"\n".join(lines)))
    assert [item.row for item in items if isinstance(item, Rejected)] == list(range(1, 10))
    assert items[-1] == Product("11", "ok")
    assert isinstance(items[3], Rejected) and isinstance(items[3].error, TextError)
    assert "not valid Unicode" in reason(items[4])
    assert "expected a finite number" in reason(items[5])
    assert "size is of type dict" in reason(items[6])
    assert "expected a string or an integer" in reason(items[7])


def test_a_parquet_file_whose_path_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    path = write(tmp_path / os.fsdecode(b"caf\xe9.parquet"), b"PAR1")
    with pytest.raises(CatalogError, match=r"cannot be read: .*surrogates"):
        read(path)


def test_parquet_in_the_layout_of_datasets_image(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    rows = [
        {"id": "1", "title": "shirt", "image": {"bytes": b"JPEG", "path": "a.jpg"}, "year": 2012, "tags": ["a", "b"]},
        {"id": "2", "title": "", "image": {"bytes": None, "path": "b.jpg"}, "year": None, "tags": None},
        {"id": "3", "title": None, "image": None, "year": None, "tags": None},
    ]
    parquet.write_table(pa.Table.from_pylist(rows * 50), tmp_path / "shop.parquet")
    items = read(tmp_path / "shop.parquet")
    assert len(items) == 150
    assert items[0] == Product("1", "shirt", b"JPEG", {"year": 2012, "tags": ["a", "b"]})
    assert items[1] == Product("2", None, str(tmp_path / "b.jpg"), {})
    assert isinstance(items[149], Rejected) and (items[149].row, items[149].id) == (149, "3")


def test_a_float32_is_the_decimal_that_it_stands_for(tmp_path: Path) -> None:
    """A filter asks for 19.99, not for 19.989999771118164."""
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    prices = [19.99, None, 0.1, 16777216.0, 3.4e38, 1e-40, -2.5]
    columns = {
        "id": pa.array([str(row) for row in range(len(prices))]),
        "title": pa.array(["a"] * len(prices)),
        "price": pa.array(prices, pa.float32()),
        "sizes": pa.array([[7.1, None]] * len(prices), pa.list_(pa.float32())),
        "exact": pa.array([0.1 + 0.2] * len(prices), pa.float64()),
    }
    parquet.write_table(pa.table(columns), tmp_path / "shop.parquet")
    items = read(tmp_path / "shop.parquet")
    assert [item.attributes.get("price") for item in items] == prices
    assert all(item.attributes["sizes"] == [7.1] and item.attributes["exact"] == 0.1 + 0.2 for item in items)
    (item,) = read([{"id": "1", "title": "a", "price": np.float32(19.99), "sizes": np.array([7.1, 8], np.float32)}])
    assert item.attributes == {"price": 19.99, "sizes": [7.1, 8.0]}


def test_parquet_values_that_python_cannot_hold_reject_their_row_alone(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    text = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(np.int32([0, 1, 2, 3])), pa.py_buffer(b"a\xffc")])
    late = pa.array([0, 0, 253402300799000000], pa.timestamp("us", "Asia/Tokyo"))
    parquet.write_table(pa.table({"id": ["1", "2", "3"], "title": text, "seen": late}), tmp_path / "shop.parquet")
    items = read(tmp_path / "shop.parquet")
    assert items[0] == Product("1", "a", None, {"seen": "1970-01-01T09:00:00+09:00"})
    assert "can't decode byte 0xff" in reason(items[1])
    assert "out of range" in reason(items[2])


def test_parquet_times_in_nanoseconds_need_no_pandas(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    seen = pa.array([1500, None], pa.timestamp("ns"))
    parquet.write_table(pa.table({"id": ["1", "2"], "title": ["a", "b"], "seen": seen}), tmp_path / "shop.parquet")
    seen_at = {"seen": "1970-01-01T00:00:00.000001"}
    assert read(tmp_path / "shop.parquet") == [Product("1", "a", None, seen_at), Product("2", "b")]


def test_parquet_lists_of_a_fixed_size_may_be_missing(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    kind = pa.list_(pa.field("element", pa.int32(), nullable=False), 2)
    sizes = pa.FixedSizeListArray.from_arrays(
        pa.array([1, 2, 0, 0], pa.int32()), type=kind, mask=pa.array([False, True])
    )
    parquet.write_table(pa.table({"id": ["1", "2"], "title": ["a", "b"], "sizes": sizes}), tmp_path / "shop.parquet")
    assert read(tmp_path / "shop.parquet") == [Product("1", "a", None, {"sizes": [1, 2]}), Product("2", "b")]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path) -> None:
    write(tmp_path / "shop.parquet", b"PAR1")
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from uniecs.catalog import read_catalog\n"
        "from uniecs.errors import MissingExtraError\n"
        "try:\n    next(read_catalog(sys.argv[1]))\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "shop.parquet")]
    assert "pip install 'uniecs[parquet]'" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    cases = [
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path, "ends in ''"),
        (write(tmp_path / "shop.xlsx", "x"), "expected one of .csv, .jsonl, .parquet"),
        (write(tmp_path / "no_id.csv", "name,title\n1,a\n"), "no column 'id'"),
        (write(tmp_path / "empty.csv", ""), "no column 'id'"),
        (write(tmp_path / "twice.csv", "id,title,title\n1,a,b\n"), "'title' twice"),
    ]
    for path, message in cases:
        with pytest.raises(CatalogError, match=message):
            read(path)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all"])
def test_parquet_that_is_damaged(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    with pytest.raises(CatalogError, match="cannot be read"):
        read(write(tmp_path / "shop.parquet", data))


def test_frame() -> None:
    pd = pytest.importorskip("pandas", reason="reading a DataFrame needs pandas")
    frame = pd.DataFrame(
        {
            "id": [1, 2, 3],
            "title": ["shirt", None, float("nan")],
            "image": [None, b"JPEG", pd.NA],
            "price": [9.5, float("nan"), 1.0],
            "since": [pd.Timestamp("2026-11-20"), pd.NaT, pd.NaT],
        }
    )
    items = read(frame)
    assert items[0] == Product("1", "shirt", None, {"price": 9.5, "since": "2026-11-20T00:00:00"})
    assert items[1] == Product("2", None, b"JPEG", {})
    assert isinstance(items[2], Rejected)
    with pytest.raises(CatalogError, match="no column 'id'"):
        read(frame.drop(columns="id"))


@pytest.mark.parametrize(("header", "meant"), [("id,Title", "title"), ("ID,title", "id"), ("id,title, image", "image")])
def test_a_column_that_is_spelt_otherwise_is_no_attribute(tmp_path: Path, header: str, meant: str) -> None:
    name = next(each for each in header.split(",") if each not in ("id", "title", "image"))
    row = dict.fromkeys(header.split(","), "1")
    with pytest.raises(CatalogError, match=f"has '{name}' and no '{meant}'"):
        read(write(tmp_path / "shop.csv", f"{header}\n{','.join(row.values())}\n"))
    assert f"row has '{name}' and no '{meant}'" in reason(read([row])[0])
    assert reason(read(write(tmp_path / "shop.jsonl", json.dumps(row)))[0]) == reason(read([row])[0])
    assert read([{"id": "1", "title": "x", "ID": 7, "Title": "Dr"}]) == [
        Product("1", "x", None, {"ID": 7, "Title": "Dr"})
    ]


def test_iterables_are_streamed() -> None:
    taken: list[int] = []

    def products() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            taken.append(number)
            yield {"id": number, "title": "x"}

    assert next(read_catalog(products())) == Product("0", "x")
    assert len(taken) == 1


def test_an_image_that_is_a_mapping_of_something_else_is_rejected() -> None:
    items = read([{"id": "1", "title": "shirt", "image": {"url": "a.jpg"}}, {"id": "2", "title": "shirt", "image": {}}])
    assert [reason(item) for item in items] == [
        "image has the keys url; expected bytes or path",
        "image has the keys none; expected bytes or path",
    ]


def test_a_json_name_that_stands_twice_rejects_its_row(tmp_path: Path) -> None:
    lines = '{"id": "1", "title": "a", "price": 1, "price": 2}\n{"id": "2", "title": "b", "price": 3}\n'
    items = read(write(tmp_path / "shop.jsonl", lines))
    assert "line 1 is not JSON: an object has 'price' twice" in reason(items[0])
    assert items[1:] == [Product("2", "b", None, {"price": 3})]


def test_images_of_an_iterable_pass_untouched() -> None:
    array, file = np.zeros((2, 2, 3), np.uint8), io.BytesIO(b"x")
    images: list[Any] = [array, file, Path("a.jpg"), "b.jpg", b""]
    items = read([Product(str(number), image=image) for number, image in enumerate(images)])
    assert all(isinstance(item, Product) and item.image is image for item, image in zip(items, images, strict=True))


def test_numpy_values_become_plain_ones() -> None:
    record = {"id": np.int64(5), "title": np.str_("x"), "n": np.float32(0.5), "v": np.array([1, 2]), "gap": np.nan}
    record |= {"day": np.datetime64("2024-01-02", "ns"), "none": Decimal("sNaN"), "price": Decimal("2.5")}
    (item,) = read([record])
    day = "2024-01-02T00:00:00"
    assert item == Product("5", "x", None, {"n": 0.5, "v": [1, 2], "day": day, "price": 2.5})
    assert isinstance(item, Product) and type(item.attributes["n"]) is float
    named = Product("1", "x", None, {"title": "Dr", "id": 5})  # unlike in a row, it is plain which is which
    assert read([named]) == [named]


@pytest.mark.parametrize("blank", ["", "  \n", "\0\0", None, math.nan])
def test_blank_title_is_absent(blank: object) -> None:
    (item,) = read([{"id": "1", "title": blank}])
    assert "neither a title nor an image" in reason(item)


@pytest.mark.parametrize("identity", [None, "", True, 1.0, b"1", math.nan])
def test_unusable_id(identity: object) -> None:
    items = read([{"id": identity, "title": "x"}, {"id": "ok", "title": "x"}])
    assert isinstance(items[0], Rejected) and items[0].id is None and isinstance(items[0].error, InputError)
    assert items[1] == Product("ok", "x")


@pytest.mark.parametrize(
    "row",
    [
        *(None, 5, "text", {1: 2}, {"id": "1", "title": "x", 5: "y"}),
        Product("1", "x", None, cast(Any, None)),
        {"id": "1", "title": "x", "attributes": {"id": "2"}},
        {"id": "1", "title": "x", "colour": "red", "attributes": {"colour": "blue"}},
    ],
)
def test_unusable_row(row: object) -> None:
    assert isinstance(read([row])[0], Rejected)


@pytest.mark.parametrize("source", [5, None, b"shop.csv", {"id": "1"}, Product("1", "x")])
def test_unusable_source(source: object) -> None:
    with pytest.raises(InputError, match="catalogue is of type"):
        read_catalog(source)


def test_a_table_of_arrow_is_to_become_a_list() -> None:
    pa = pytest.importorskip("pyarrow", reason="a table needs pyarrow")
    table = pa.table({"id": ["1"], "title": ["x"]})
    for source in (table, table.to_batches()[0]):
        with pytest.raises(InputError, match=r"type (Table|RecordBatch);.* such as its \.to_pylist\(\)"):
            read_catalog(source)
    assert read(table.to_pylist()) == [Product("1", "x")]


def test_what_no_index_could_store_rejects_its_row_alone(tmp_path: Path) -> None:
    items = read(
        [
            {"id": "1", "title": "x", "\udcf6": 1},
            {"id": "2", "title": "x", "n": 10**5000},
            {"id": "3", "title": "x", "n": [1, -(10**400)]},
            {"id": "4", "title": "x", "n": 10**300},
        ]
    )
    assert "attribute name is not valid Unicode" in reason(items[0])
    assert "integer of 16610 bits" in reason(items[1]) and "integer of 1329 bits" in reason(items[2])
    assert items[3] == Product("4", "x", None, {"n": 10**300})
    latin = read(write(tmp_path / "shop.csv", "id,title,Größe\n1,x,L\n2,x,\n".encode("latin-1")))
    assert [type(each) for each in latin] == [Rejected, Product]


def test_rejected_rows_hold_no_frames() -> None:
    (item,) = read([{"id": "1", "title": "\ud800"}])
    assert isinstance(item, Rejected) and item.error.__traceback__ is None
    assert item.error.__cause__ is not None and item.error.__cause__.__traceback__ is None
