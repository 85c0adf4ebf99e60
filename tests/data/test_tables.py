"""Tables: each row once, numbers and texts as features; nasty cells are refused by column and line, or counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from research.data.spec import MemoryDataset, Vectors
from research.data.table import Kind, table
from research.preflight.check import find_mistakes

HEADER = "size,colour,kind\n"
ROWS = [f"{number}.5,{('red', 'blue')[number % 3 == 0]},{('tree', 'bush')[number % 2]}\n" for number in range(20)]
CSV = HEADER + "".join(ROWS)


def write(root: Path, content: str | bytes = CSV, name: str = "a.csv") -> str:
    path = root / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def count(data: MemoryDataset[Any]) -> int:
    return len(data.train) + len(data.val) + (len(data.test) if data.test is not None else 0)


def collect(data: MemoryDataset[Any]) -> list[list[float]]:
    """Return features and target of every row, sorted."""
    splits = [split for split in (data.train, data.val, data.test) if split is not None]
    return sorted([*x.tolist(), float(y)] for split in splits for x, y in zip(split.inputs, split.targets, strict=True))


def test_numbers_and_texts_are_features(tmp_path: Path) -> None:
    data = table(path=write(tmp_path), standardize=False, test_fraction=0.1)
    assert data.shape == Vectors(3, 2)
    assert data.test is not None
    assert (len(data.train), len(data.val)) == (14, 4)
    expected = [[n + 0.5, float(n % 3 == 0), float(n % 3 != 0), float(n % 2 == 0)] for n in range(20)]
    assert collect(data) == expected, "blue before red, bush before tree"
    sizes = [int((data.train.targets == number).sum()) for number in (0, 1)]
    counted = f"samples in training: {sizes[0]} of bush, {sizes[1]} of tree"
    assert data.notes == ("classes: 0 bush, 1 tree", counted, "1 column of texts as 2 categories")
    assert data.source == "a.csv, 2 columns predict 'kind'"


def test_numbers_are_standardized_by_the_training_rows(tmp_path: Path) -> None:
    data = table(path=write(tmp_path))
    sizes = data.train.inputs[:, 0]
    assert float(sizes.mean()) == pytest.approx(0, abs=1e-6)
    assert float(sizes.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert abs(float(data.val.inputs[:, 0].mean())) > 1e-3


def test_the_split_does_not_depend_on_the_order_of_rows_and_columns(tmp_path: Path) -> None:
    digests = set[str]()
    for name, rows in (("a.csv", ROWS), ("b.csv", ROWS[::-1])):
        digests.add(table(path=write(tmp_path, HEADER + "".join(rows), name)).digest)
    assert len(digests) == 1
    assert table(path=write(tmp_path), split_seed=1).digest not in digests


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [row.strip().split(",") for row in ROWS]
    records = [{"size": float(size), "colour": colour, "kind": kind} for size, colour, kind in rows]
    files = {
        "a.csv": CSV,
        "b.csv": CSV.replace(",", ";").replace(".5", ",5"),
        "c.tsv": CSV.replace(",", "\t"),
        "d.jsonl": "".join(json.dumps(record) + "\n" for record in records),
    }
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "e.parquet")
    expected = table(path=write(tmp_path)).digest
    for name, content in files.items():
        settings: dict[str, Any] = {"decimal": "comma"} if name == "b.csv" else {}
        assert table(path=write(tmp_path, content, name), **settings).digest == expected, name
    assert table(path=str(tmp_path / "e.parquet")).digest == expected
    both = table(path=[str(tmp_path / "a.csv"), str(tmp_path / "d.jsonl")])
    assert (len(both.train), len(both.val)) == (32, 8)
    assert "20 rows repeat another one, and have its split" in both.notes


def test_numbers_are_targets_in_their_own_units(tmp_path: Path) -> None:
    data = table("number", write(tmp_path), target="size")
    assert data.shape.num_classes == 1
    assert data.train.targets.dtype == torch.float32
    every = torch.cat((data.train.targets, data.val.targets))
    assert sorted(every.tolist()) == [n + 0.5 for n in range(20)]
    errors = data.val.targets - data.train.targets.mean()
    assert data.baseline["val/rmse mean"] == pytest.approx(float(errors.square().mean().sqrt()))
    assert data.baseline["val/mae mean"] == pytest.approx(float(errors.abs().mean()))


def test_the_examples_of_scikit_learn() -> None:
    assert table().shape == Vectors(30, 2)
    assert table("number").shape[:2] == (10, 1)
    assert table(exclude=["mean radius"]).shape == Vectors(29, 2)


# Row or rows beside twenty good ones -> what is said. With defects=skip they are left out, and counted.
LEFT_OUT: dict[str, tuple[str | bytes, str]] = {
    "a short row": (b"1,red\n", "1 rows with more or fewer cells than the header"),
    "a long row": (b"1,red,tree,4\n", "1 rows with more or fewer cells than the header"),
    "a quote that stays open": (b'1,"red,tree\n', "1 rows that are no CSV"),
    "two stray quotes": (b'1,"red,tree\n2,blue,bush\n3,red",tree\n', "3 rows within one pair of quotes"),
    "a row in Latin-1": (b"1,r\xe9d,tree\n", "1 rows that are not UTF-8"),
    "NUL bytes": (b"1,r\0d,tree\n", "1 rows that are no text (NUL bytes)"),
    "a text among numbers": ("12 cm,red,tree\n", "1 texts among the numbers of 'size'"),
    "a number with an underscore": ("1_000,red,tree\n", "1 texts among the numbers of 'size'"),
    "infinity": ("inf,red,tree\n", "1 numbers that are not finite in 'size'"),
    "a number out of range": ("1e400,red,tree\n", "1 numbers that are not finite in 'size'"),
}
GAPS: dict[str, tuple[str, str]] = {
    "an empty cell": (",red,tree\n", "1 cells without a value in 'size'"),
    "NA": ("NA,red,tree\n", "1 cells without a value in 'size'"),
    "nan": ("nan,red,tree\n", "1 cells without a value in 'size'"),
    "an empty text": ("99, ,tree\n", "1 cells without a value in 'colour'"),
    "a row without a class": ("99,red,\n", "1 cells without a value in 'kind'"),
}
Make = Callable[[Path], object]
REFUSED: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "an empty file": ("", {}, "1 empty files"),
    "a byte order mark alone": (b"\xef\xbb\xbf", {}, "1 empty files"),
    "a line of names that is no CSV": ('"size"x,kind\n1,tree\n', {}, "1 tables that are no CSV"),
    "names alone": (HEADER, {}, "has a line of names and no rows"),
    "no line of names": ("".join(ROWS), {}, "data.header=auto: the first line of"),
    "columns of one name": ("size,size,kind\n" + "".join(ROWS), {}, "has several columns 'size'"),
    "another separator": (CSV.replace(",", ":"), {}, "has one column, 'size:colour:kind'"),
    "decimals with a comma": (
        CSV.replace(",", ";").replace(".5", ",5"),
        {},
        "data.decimal=point: 'size' has numbers with other marks, as '0,5'",
    ),
    **{
        f"numbers as {text}": (
            "x;kind\n" + "".join(f"{text.replace('7', str(n))};{'ab'[n % 2]}\n" for n in range(1, 30)),
            {"decimal": "comma" if text.endswith(",7") else "point"},
            f"'x' has numbers with other marks, as '{text.replace('7', '1')}'",
        )
        for text in ("7,234", "7,234,000.5", "7 234", "$7", "-7 €", "7%", "1.23.4,7")
    },
    "a target with commas": ("x;y\n" + "".join(f"{n};{n},000\n" for n in range(9)), {"kind": "number"}, "'y' has numbers with"),
    "a target in seconds since 1970": (
        "x,y\n" + "".join(f"{n * n},{1_700_000_000 + n}\n" for n in range(40)),
        {"kind": "number"},
        "data.target=y has 40 different numbers, of which 32 bits keep 1\nsubtract one number from all, as 1700000000",
    ),
    "a feature in seconds since 1970, as it is": (
        "x,y\n" + "".join(f"{1_700_000_000 + n},{'ab'[n % 2]}\n" for n in range(40)),
        {"standardize": False},
        "data.standardize=false: 'x' has 40 different numbers, of which 32 bits keep 1\ngive data.standardize=true",
    ),
    "a feature of two scales": (
        "x,y\n" + "".join(f"{n if n % 2 else 10**10 + n},{'ab'[n % 3 == 0]}\n" for n in range(40)),
        {},
        "data.standardize=true: 'x' has 40 different numbers, of which 32 bits keep",
    ),
    "one huge number among small ones": (
        "x,y\n1e308,a\n" + "".join(f"{n},{'ab'[n % 3 == 0]}\n" for n in range(40)),
        {},
        "data.standardize=true: 'x' has 41 different numbers, of which 32 bits keep 2",
    ),
    **{
        f"a target of {number}": (
            "x,y\n7,NUMBER\n".replace("NUMBER", number) + "".join(f"{n * n},{n}\n" for n in range(40)),
            {"kind": "number"},
            f"data.target=y has numbers of up to {number}, whose squares 32 bits cannot hold\ngive it in a larger unit",
        )
        for number in ("1e+20", "1e+38", "1e+308")
    },
    "targets of 1e-60": (
        "x,y\n" + "".join(f"{n},{n * n}e-60\n" for n in range(9)),
        {"kind": "number"},
        "32 bits cannot hold\ngive it in a smaller unit",
    ),
    "whole numbers that lose digits, as a target": (
        "x,y\n" + "".join(f"{n},{2**60 + n * n}\n" for n in range(9)),
        {"kind": "number"},
        "data.target: 'y' has whole numbers beyond 9,007,199,254,740,992",
    ),
    "a class written as 1 and as 01": (
        "x,y\n" + "".join(f"{n},{('01', '1', '2')[n % 3]}\n" for n in range(9)),
        {},
        "data.target=y has the classes '01' and '1', which are one number",
    ),
    "UTF-16": (CSV.encode("utf-16"), {}, "; state data.encoding where it is that of all files, else convert these first"),
    "an encoding that is none": (CSV, {"encoding": "utf-9"}, "data.encoding=utf-9"),
    "one class": (HEADER + "".join(row for row in ROWS if "tree" in row), {}, "has the one class 'tree'"),
    "a column that is not there": (CSV, {"target": "species"}, "data.target=species: there is no such column"),
    "a feature that is not there": (CSV, {"features": ["sizes"]}, "data.features=sizes"),
    "the target as a feature": (CSV, {"features": ["kind"]}, "'kind' is the target"),
    "no feature": (CSV, {"exclude": ["size", "colour"]}, "no column is left"),
    "a class for each row": (CSV, {"target": "size", "max_categories": 3}, "data.target=size has 20 classes in 20 rows"),
    "numbers in place of classes": (
        "x,y\n" + "".join(f"{n},{n % 30 + 0.5}\n" for n in range(90)),
        {},
        "has 30 different numbers, as 0.5: no classes\ngive data=regression",
    ),
    "classes in place of numbers": (CSV, {"kind": "number"}, "data.target=kind holds text, as 'tree'"),
    "a number that is always the same": ("x,y\n1,2\n2,2\n3,2\n", {"kind": "number"}, "is 2 in each row"),
    "too many texts": (
        "name,kind\n" + "".join(f"n{n},{'ab'[n % 2]}\n" for n in range(30)),
        {"max_categories": 20},
        "data.max_categories=20: 'name' has 24 different texts",
    ),
    "whole numbers that lose digits": (
        "id,kind\n" + "".join(f"{2**60 + n},{'ab'[n % 2]}\n" for n in range(9)),
        {},
        "'id' has whole numbers beyond 9,007,199,254,740,992",
    ),
    "numbers of many magnitudes": (
        "p,y\n" + "".join(f"{0.7 * 10.0**-n},{'ab'[n % 2]}\n" for n in range(40)),
        {},
        "give data.standardize=false, or data.exclude=[p]",
    ),
    "a name that is no word": (
        "Income ($),y\n" + "".join(f"t{n},{'ab'[n % 2]}\n" for n in range(40)),
        {"max_categories": 9},
        """give 'data.exclude=["Income ($)"]', or data.max_categories=32""",
    ),
    "numbers beyond float32": (
        "x,kind\n" + "".join(f"{n}e300,{'ab'[n % 2]}\n" for n in range(1, 9)),
        {"standardize": False},
        "data.standardize=false",
    ),
    "no row for training": (HEADER + ROWS[0] + ROWS[1], {"val_fraction": 0.9}, "leave no training sample of 2"),
}
TREATED: dict[str, tuple[str | bytes, dict[str, Any], str, int]] = {
    "a byte order mark": (CSV.encode("utf-8-sig"), {}, "", 20),
    "CRLF": (CSV.replace("\n", "\r\n"), {}, "", 20),
    "blank lines": (CSV + "\n\n", {}, "", 20),
    "spaces around cells": (CSV.replace(",", " , "), {}, "", 20),
    "UTF-16 that is stated": (CSV.encode("utf-16"), {"encoding": "utf-16"}, "", 20),
    "Latin-1 that is stated": (CSV.replace("red", "rosé").encode("latin-1"), {"encoding": "latin-1"}, "", 20),
    "a cell of two lines": (CSV + '77,"re\nd",tree\n', {}, "1 cells of 'colour' have several lines", 21),
    "addresses of two lines": (
        "at,y\n" + "".join(f'"{n % 9} Main St, Springfield\nUSA",{"ab"[n % 2]}\n' for n in range(40)),
        {},
        "40 cells of 'at' have several lines",
        40,
    ),
    "no line of names, stated": ("".join(ROWS), {"header": False}, "", 20),
    "names that are numbers, stated": (CSV.replace("size", "2019", 1), {"header": True}, "", 20),
    "repeated rows": (CSV + ROWS[3], {}, "1 rows repeat another one, and have its split", 21),
    "an index without a name": (
        ",size,colour,kind\n" + "".join(f"{n},{row}" for n, row in enumerate(ROWS)),
        {},
        "left out: 1 columns without a name",
        20,
    ),
    "a column without values": (
        "size,colour,empty,kind\n" + "".join(row.replace(",t", ",,t").replace(",bu", ",,bu") for row in ROWS),
        {},
        "left out: 1 columns without a value",
        20,
    ),
    "a column that counts the rows": (
        "id,size,kind\n" + "".join(f"{n},{n * n},{'ab'[n % 2]}\n" for n in range(30)),
        {},
        "counts the rows: 'id'; see data.exclude",
        30,
    ),
    "a copy of the target": (
        "code,size,kind\n" + "".join(f"{n % 2},{n * n},{'ab'[n % 2]}\n" for n in range(30)),
        {},
        "tells 'kind' exactly: 'code'; see data.exclude",
        30,
    ),
    "a row that contradicts another": (CSV + "1.5,red,tree\n", {}, "1 rows have the features of another row", 21),
    "a class written as 01 alone": (
        "x,y\n" + "".join(f"{n},{('01', '02', '10')[n % 3]}\n" for n in range(9)),
        {},
        "classes: 0 01, 1 02, 2 10",
        9,
    ),
    "seconds since 1970": ("x,y\n" + "".join(f"{1_700_000_000 + n * n},{'ab'[n % 2]}\n" for n in range(40)), {}, "", 40),
    "versions are no numbers": ("v,x,y\n" + "".join(f"1.{n % 2}.0,{n},{'ab'[n % 3 == 0]}\n" for n in range(9)), {}, "2 cat", 9),
    "numbers that differ by rounding": (
        "x,y\n" + "".join(f"{0.1 * 3 if n % 2 else 0.3},{n}\n{n},{n}\n" for n in range(9)),
        {"kind": "number", "standardize": False},
        "",
        18,
    ),
    "one value in a column": (CSV.replace("blue", "red"), {}, "one value in training: 'colour'", 20),
    "classes that differ in capitals": (CSV + "50,red,Tree\n51,red,Tree\n", {}, "differ in capitals alone: Tree, tree", 22),
    "a class of one row": (CSV + "50,red,vine\n", {}, "val has no sample of 1 classes: vine", 21),
    "numbers of 300 digits": ("x,kind\n" + "".join(f"{n}e300,{'ab'[n % 2]}\n" for n in range(1, 9)), {}, "", 8),
    "codes as classes": (
        "x,y\n" + "".join(f"{n},{('12e4', '1234', '01234', 'a1')[n % 4]}\n" for n in range(16)),
        {},
        "classes: 0 1234, 1 01234, 2 12e4, 3 a1",
        16,
    ),
    "codes with an exponent": ("x,y\n" + "".join(f"{n},{('12e4', '1e3')[n % 2]}\n" for n in range(9)), {}, "0 1e3, 1 12e4", 9),
    "codes as categories": (
        "c,y\n" + "".join(f"{('01234', '1234', 'A12', '1.10', '1.1')[n % 5]},{'ab'[n % 5 == 0]}\n" for n in range(50)),
        {"val_fraction": 0.1},
        "1 column of texts as 4 categories",
        50,
    ),
    "a class written as 1 and as 1.0": (
        "x,y\n" + "".join(f"{n},{('0', '1', '1.0')[n % 3]}\n" for n in range(9)),
        {},
        "0 0, 1 1",
        9,
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_nasty_row_is_refused_or_counted(tmp_path: Path, name: str) -> None:
    row, words = LEFT_OUT[name]
    path = write(tmp_path, CSV.encode() + (row if isinstance(row, bytes) else row.encode()))
    with pytest.raises(ValueError, match=r"data\.path: ") as error:
        table(path=path)
    assert words in str(error.value)
    assert "a.csv:22" in str(error.value), "the line is named"
    assert "data.defects=skip" in str(error.value)
    data = table(path=path, defects="skip")
    assert count(data) == 20
    assert words in "".join(data.notes)


def test_each_line_behind_an_open_quote_is_counted(tmp_path: Path) -> None:
    """The quote takes all that follows: one defect would hide how much is lost."""
    file, words = tmp_path / "a.csv", f"{1 + len(ROWS[10:])} rows that are no CSV"
    file.write_text(HEADER + "".join(ROWS[:10]) + '1,"red,tree\n' + "".join(ROWS[10:]))
    with pytest.raises(ValueError, match=words):
        table(path=str(file))
    assert words in "\n".join(table(path=str(file), defects="skip").notes)


def test_stray_quotes_between_two_columns_are_refused(tmp_path: Path) -> None:
    rows = [f"c{n % 9},{'ab'[n % 2]}\n" for n in range(40)]
    path = write(tmp_path, "c,y\n" + "".join(rows) + '"red,a\nblue",b\n')
    with pytest.raises(ValueError, match="2 rows within one pair of quotes"):
        table(path=path)


@pytest.mark.parametrize("name", GAPS)
def test_a_cell_without_a_value_is_refused_filled_or_counted(tmp_path: Path, name: str) -> None:
    row, words = GAPS[name]
    path = write(tmp_path, CSV + row)
    with pytest.raises(ValueError, match=r"data\.missing=refuse: ") as error:
        table(path=path)
    assert words in str(error.value)
    assert "a.csv:22" in str(error.value)
    data = table(path=path, missing="drop")
    assert count(data) == 20
    assert f"left out: {words}" in data.notes
    is_target = name == "a row without a class"
    data = table(path=path, missing="mean")
    assert count(data) == 20 + (not is_target)
    assert f"{'left out' if is_target else 'changed'}: {words}" in data.notes


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, name: str) -> None:
    content, settings, words = REFUSED[name]
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"^data\.\w+.*\n") as error:
        table(path=path, **settings)
    assert words in str(error.value)


@pytest.mark.parametrize("name", TREATED)
def test_an_odd_table_is_treated_as_stated(tmp_path: Path, name: str) -> None:
    content, settings, words, number = TREATED[name]
    data = table(path=write(tmp_path, content), **settings)
    assert count(data) == number
    assert words in "; ".join(data.notes) if words else not any(note.startswith("left out") for note in data.notes)
    assert all(bool(split.inputs.isfinite().all()) for split in (data.train, data.val))


JSON_ROWS = "".join(json.dumps({"x": n, "y": "ab"[n % 2]}) + "\n" for n in range(8))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"x": 1, "y"\n', "1 lines that are no JSON\n"),
        ("[1, 2]\n", "1 lines that are no JSON object"),
        ('{"x": [1], "y": "a"}\n', "1 cells with a list, an object or bytes in 'x'"),
        ('{"x": Infinity, "y": "a"}\n', "1 numbers that are not finite in 'x'"),
    ],
    ids=["no JSON", "a list", "a nested cell", "infinity"],
)
def test_a_nasty_line_of_json_is_refused_or_counted(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, JSON_ROWS + line, "a.jsonl")
    with pytest.raises(ValueError, match=r"data\.path: ") as error:
        table(path=path)
    assert words in str(error.value)
    assert "a.jsonl:9" in str(error.value)
    assert count(table(path=path, defects="skip")) == 8


def test_keys_may_come_after_the_first_line(tmp_path: Path) -> None:
    """The target is still the last key of the first object."""
    path = write(tmp_path, JSON_ROWS + '{"x": 9, "y": "a", "z": 3}\n', "a.jsonl")
    with pytest.raises(ValueError, match="8 cells without a value in 'z'"):
        table(path=path)
    assert table(path=path, missing="mean").source == "a.jsonl, 2 columns predict 'y'"
    assert table(path=path, exclude=["z"]).shape == Vectors(1, 2)


def test_a_nested_column_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(json.dumps({"x": n, "tags": [n], "y": "ab"[n % 2]}) + "\n" for n in range(8)), "a.jsonl")
    with pytest.raises(ValueError, match="8 cells with a list, an object or bytes in 'tags'"):
        table(path=path)
    assert count(table(path=path, exclude=["tags"])) == 8


def test_files_that_are_no_table_of_the_kind_are_refused_or_counted(tmp_path: Path) -> None:
    parquet.write_table(
        pyarrow.table({"size": [1.0, 2.0], "colour": ["red"] * 2, "kind": ["tree"] * 2}), tmp_path / "b.parquet"
    )
    write(tmp_path)
    write(tmp_path, (tmp_path / "b.parquet").read_bytes()[:-9], "b.parquet")
    write(tmp_path, "size,form,kind\n1,x,tree\n", "c.csv")
    write(tmp_path, "name\nx\n", "d.csv")
    write(tmp_path, "", "e.csv")
    with pytest.raises(ValueError, match=r"c\.csv \('colour'\), \S+d\.csv \('colour'\)") as error:
        table(path=str(tmp_path))
    defects = "2 tables with other columns than a.csv, 1 damaged parquet files, 1 empty files"
    assert f"data.path: {defects}\n" in str(error.value)
    data = table(path=str(tmp_path), defects="skip")
    assert count(data) == 20
    assert f"left out: {defects}" in data.notes


def test_rows_of_equal_features_are_in_one_split(tmp_path: Path) -> None:
    rows = "".join(f"{n // 4},{'ab'[n % 2]}{n % 4 // 2},{n}\n" for n in range(160))
    cases: tuple[tuple[Kind, str], ...] = (("class", "y"), ("number", "z"))
    for kind, target in cases:
        data = table(kind, write(tmp_path, "x,y,z\n" + rows), target=target, features=["x"], test_fraction=0.1)
        assert data.test is not None
        kept = [set(split.inputs[:, 0].tolist()) for split in (data.train, data.val, data.test)]
        assert sum(map(len, kept)) == len(set.union(*kept)) == 40
        assert (count(data), len(data.val)) == (160, 32)
        assert f"120 rows have the features of another row with another '{target}', and its split" in data.notes


def test_equal_rows_of_others_count_as_often_as_they_are_there(tmp_path: Path) -> None:
    """A table of categories alone: its rows are of different people, and their shares are what is to be learnt."""
    rows = [f"c{n % 12},{'no' if n % 5 else 'yes'}\n" for n in range(600)]
    path = write(tmp_path, "c,y\n" + "".join(rows))
    data = table(path=path, test_fraction=0.1)
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (450, 100, 50), "whole groups of fifty, as have room"
    every = torch.cat((data.train.targets, data.val.targets, data.test.targets))
    assert int((every == data.classes.index("yes")).sum()) == 120
    assert "576 rows repeat another one, and have its split" in data.notes
    assert table(path=write(tmp_path, "c,y\n" + "".join(rows[::-1])), test_fraction=0.1).digest == data.digest


def test_categories_are_those_of_training_rows(tmp_path: Path) -> None:
    data = table(path=write(tmp_path, "x,c,y\n" + "".join(f"{n},c{n},{'ab'[n % 2]}\n" for n in range(40))))
    assert data.shape.num_features == 1 + len(data.train) == 33
    assert (data.train.inputs[:, 1:].sum(dim=1) == 1).all()
    assert (data.val.inputs[:, 1:] == 0).all()
    assert "texts that training lacks, of no category: 8 of 'c'" in data.notes


def test_a_kind_has_its_own_data_set() -> None:
    assert find_mistakes(["data=regression", "model=mlp"], False) == []
    (mistake,) = find_mistakes(["data=table", "model=mlp", "data.kind=number"], False)
    assert "give data=regression" in mistake
