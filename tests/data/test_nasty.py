"""Nasty inputs of text, one a row: each is refused by a clear error before anything is made, or left out, counted and told."""

import errno
import gzip
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from program import train
from pyarrow import parquet

from research.data import streams
from research.data import text as text_module
from research.data.corpus import Reader, read_corpus
from research.data.labelled_text import labelled_text
from research.data.pairs import pairs
from research.data.text import text
from research.data.tokenizers import BPE
from research.files import lines
from research.files.sources import Counts, find_files
from research.run_dir import read_json, write_record

Write = Callable[[Path], Any]
GOOD = "".join(f"a good line, number {number}\n" for number in range(60))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(lines, "LONGEST_ROW", 1 << 20)
    (tmp_path / "data").mkdir()
    return tmp_path / "cache"


def put(**files: str | bytes) -> Write:
    """Return what writes these files; the names are "a_txt" for "a.txt"."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def put_table(name: str, **columns: Any) -> Write:
    return lambda folder: parquet.write_table(pyarrow.table(columns), folder / name)


def put_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.txt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.txt", GOOD)


def put_broken_text(folder: Path) -> None:
    """A column of strings that holds no UTF-8, as some writers make."""
    bad = pyarrow.array([b"\xff\xfe", GOOD.encode()]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": bad}), folder / "a.parquet")


def cut_table(folder: Path) -> None:
    put_table("a.parquet", text=[GOOD] * 9)(folder)
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content[: len(content) // 2])


def link_in_a_circle(folder: Path) -> None:
    put(a_txt=GOOD, b_txt=GOOD * 2)(folder)
    (folder / "down").mkdir()
    (folder / "down" / "up").symlink_to(folder)


def link_to_nothing(folder: Path) -> None:
    put(a_txt=GOOD)(folder)
    (folder / "b.txt").symlink_to(folder / "c.txt")


def put_pipe(folder: Path) -> None:
    put(a_txt=GOOD)(folder)
    os.mkfifo(folder / "b.txt")


def row(**cells: Any) -> str:
    return json.dumps(cells) + "\n"


CSV = f'text,n\n"{GOOD}",1\n'
JSONL = row(text=GOOD)

# What is written -> which words the one error has. The settings are those of data=text.
REFUSED: dict[str, tuple[Write, dict[str, Any], str]] = {
    "nothing at the path": (put(), {"path": "none"}, "there is no file or folder"),
    "one path of several is missing": (put(a_txt=GOOD), {"path": ["a.txt", "none"]}, "data.path=.*none: there is no file"),
    "an empty folder": (put(), {}, "no file below .*; it is empty"),
    "a pattern that nothing matches": (put(a_txt=GOOD), {"pattern": "*.md"}, "data.pattern=.*.md: no file .*1 .txt"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), {"path": "pipe"}, "is neither a file nor a folder"),
    "a device": (put(), {"path": "/dev/zero"}, "/dev/zero is neither a file nor a folder"),
    "an empty file": (put(a_txt=""), {}, "holds no text: 1 empty"),
    "blanks alone": (put(a_txt=" \n\t\r\n"), {}, "holds no text: 1 empty"),
    "too short a text": (put(a_txt="short"), {}, "data.seq_len=16 is too long: the .* has . bytes"),
    "Latin-1": (put(a_txt=GOOD, b_txt="café".encode("latin-1")), {}, r"1 not UTF-8\n.*b.txt \(byte 3\)"),
    "UTF-16": (put(a_txt=GOOD.encode("utf-16")), {}, "1 not UTF-8"),
    "UTF-8 that is cut": (put(a_txt=GOOD + "é", b_txt=GOOD.encode() + b"\xc3"), {}, "1 not UTF-8"),
    "another encoding than stated": (put(a_txt=GOOD + "é"), {"encoding": "ascii"}, "1 not ASCII"),
    "UTF-16 without its mark": (put(a_txt=GOOD), {"encoding": "utf-16"}, "1 not UTF-16"),
    "an encoding that is none": (put(a_txt=GOOD), {"encoding": "utf8mb4"}, "data.encoding=utf8mb4: Python knows no such"),
    "a codec of bytes": (put(a_txt=GOOD), {"encoding": "hex"}, "data.encoding=hex: Python knows no such"),
    "NUL bytes": (put(a_txt=GOOD + "\0"), {}, "1 with NUL bytes, so no text"),
    "an archive named as text": (put_zip, {}, "1 (with NUL bytes|not UTF-8)"),
    "compressed text": (put(a_txt=gzip.compress(GOOD.encode())), {}, "1 (with NUL bytes|not UTF-8)"),
    "a missing column": (put(a_csv="body,n\nx,1\n"), {}, "data.field=text: .*give data.field=COLUMN, one of body, n"),
    "one of two columns is missing": (put(a_csv=CSV), {"field": ["text", "title"]}, "data.field=title: .* has no column"),
    "two columns of one name": (put(a_csv="text,text\nx,y\n"), {}, "has several columns 'text'"),
    "a header alone": (put(a_csv="text,n\n"), {}, "holds no text"),
    "a ragged row": (put(a_csv=CSV + "x\n"), {}, "1 rows with more or fewer cells than the header\n"),
    "a quote that stays open": (put(a_csv=CSV + '"x,1\n'), {}, "1 rows that are no CSV"),
    "a header that is no CSV": (put(a_csv='"text"x,n\n'), {}, "1 tables that are no CSV"),
    "a huge cell": (put(a_csv=CSV + f"{'x' * (1 << 21)},1\n"), {}, "1 rows that are no CSV .field larger"),
    "a row in Latin-1": (put(a_csv=CSV.encode() + b"caf\xe9,2\nfine,3\n"), {}, "1 not UTF-8\n"),
    "a line that is no JSON": (put(a_jsonl=JSONL + '{"text": \n'), {}, "1 lines that are no JSON\n.*a.jsonl:2"),
    "a line that is no object": (put(a_jsonl=JSONL + '["text"]\n'), {}, "1 lines that are no JSON object"),
    "JSON too deep to be read": (put(a_jsonl=JSONL + "[" * 99_999), {}, "1 lines that are no JSON"),
    "a number of a million digits": (put(a_jsonl=JSONL + f'{{"text": {"9" * 10**6}}}'), {}, "1 lines that are no JSON"),
    "a huge line of JSON": (put(a_jsonl=JSONL + row(text="x" * (1 << 21)) + row(text="y")), {}, "1 lines of over 1 MB"),
    "a row without the key": (put(a_jsonl=JSONL + row(body="x")), {}, "1 rows without data.field=text"),
    "null in place of text": (put(a_jsonl=JSONL + row(text=None)), {}, "1 rows with null in 'text'"),
    "a number in place of text": (put(a_jsonl=JSONL + row(text=3)), {}, "1 rows with a int in 'text'"),
    "a list in place of text": (put(a_jsonl=JSONL + row(text=["x"])), {}, "1 rows with a list in 'text'"),
    "half a surrogate pair": (put(a_jsonl=JSONL + '{"text": "\\ud83d"}\n'), {}, "1 rows with half a surrogate pair"),
    "a NUL in JSON": (put(a_jsonl=JSONL + '{"text": "x\\u0000"}\n'), {}, "1 rows with NUL bytes, so no text"),
    "a table that is cut": (cut_table, {}, "1 damaged parquet files"),
    "text named as a table": (put(a_parquet=GOOD), {}, "1 damaged parquet files"),
    "a column of numbers": (put_table("a.parquet", text=[1, 2]), {}, "has int64 there, no text"),
    "a nested column": (put_table("a.parquet", text=[{"body": "x"}]), {}, "has struct<body: string> there, no text"),
    "a column of broken text": (put_broken_text, {}, "1 not UTF-8\n.*a.parquet:1"),
    "null in a table": (put_table("a.parquet", text=["x", None]), {}, "1 rows with null in 'text'"),
    "more weights than paths": (put(a_txt=GOOD), {"path": ["a.txt"], "weights": [1.0, 2.0]}, "is no list of as many paths"),
}  # fmt: skip


def give_paths(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with paths below the folder; it is the path where there is none."""
    path = settings.get("path", ".")
    below = [str(folder / name) for name in path] if isinstance(path, list) else str(folder / path)
    return settings | {"path": below}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(tmp_path: Path, cache: Path, name: str) -> None:
    write, settings, words = REFUSED[name]
    write(tmp_path / "data")
    with pytest.raises(ValueError, match=f"(?s){words}") as error:
        text(**{"seq_len": 16} | give_paths(tmp_path / "data", settings))
    assert len(str(error.value).splitlines()) <= 6
    if "seq_len" not in str(error.value):
        assert not list(cache.glob("[!.]*")), "nothing is made"


# What is written -> what the notes of the data set say of it.
TREATED: dict[str, tuple[Write, dict[str, Any], str]] = {
    "repeats": (put(a_txt=GOOD, b_txt=GOOD, c_txt=GOOD * 2, d_txt=GOOD.replace("\n", "\r\n")), {}, "left out: 2 repeated"),
    "a byte order mark": (put(a_txt=GOOD, b_txt="\ufeff" + GOOD), {}, "left out: 1 repeated"),
    "one text many times": (put(a_jsonl=JSONL * 50), {}, "left out: 49 repeated"),
    "other kinds of files": (put(a_txt=GOOD, b_png=b"\x89PNG", c_gz=b"\x1f\x8b"), {}, "left out: 1 .gz files, 1 .png files"),
    "empty files": (put(a_txt=GOOD, b_txt="", c_txt=" "), {}, "left out: 2 empty"),
    "a pipe in the folder": (put_pipe, {}, "1 broken links or devices"),
    "a link to nothing": (link_to_nothing, {}, "1 broken links or devices"),
    "a row in Latin-1, left out": (put(a_csv=CSV.encode() + b"caf\xe9,2\n"), {"defects": "skip"}, "left out: 1 not UTF-8"),
    "a ragged row, left out": (put(a_csv=CSV + "x\n"), {"defects": "skip"}, "1 rows with more or fewer cells"),
    "a huge line, left out": (
        put(a_jsonl=row(text="x" * (1 << 21)) + JSONL), {"defects": "skip"}, "left out: 1 lines of over 1 MB"
    ),
    "broken text, left out": (put_broken_text, {"defects": "skip"}, "left out: 1 not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", TREATED)
def test_it_is_left_out_and_told(tmp_path: Path, name: str) -> None:
    write, settings, words = TREATED[name]
    write(tmp_path / "data")
    data = text(**{"seq_len": 16} | give_paths(tmp_path / "data", settings))
    assert words in data.notes[-1]
    assert len(data.train) > 10


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    link_in_a_circle(tmp_path / "data")
    assert text(str(tmp_path / "data"), seq_len=16).source.startswith("1 + 1 documents")


def test_a_line_of_many_megabytes_is_text(tmp_path: Path) -> None:
    put(a_txt="no line ends here, é " * 100_000)(tmp_path / "data")
    data = text(str(tmp_path / "data"), seq_len=16)
    assert data.source.startswith("1 + 1 documents, 2.2 MB")


@contextmanager
def without_privileges() -> Iterator[Path]:
    """Give a folder to whoever runs the tests, root made an ordinary user meanwhile."""
    was_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            if was_root:
                os.chown(folder, 65534, -1)
                os.seteuid(65534)
            yield Path(folder)
        finally:
            if was_root:
                os.seteuid(0)


@pytest.mark.parametrize(("name", "count"), [("a.txt", 2), ("a.jsonl", 1), ("a.parquet", 1)])
def test_files_without_permission_are_named(name: str, count: int) -> None:
    with without_privileges() as folder:
        (folder / "b.txt").touch(0o000)
        (folder / name).touch(0o000)
        (folder / "c.txt").write_text(GOOD)
        with pytest.raises(ValueError, match="2 files without permission"):
            read_corpus(
                find_files(str(folder), None, Counts()), Reader("auto", ("text",), "utf-8"), (0.1, 0.0), False, Counts()
            )


def test_folders_without_permission_are_counted() -> None:
    with without_privileges() as folder:
        (folder / "c.txt").write_text(GOOD)
        (folder / "closed").mkdir(0o000)
        counts = Counts()
        assert find_files(str(folder), None, counts) == [(folder / "c.txt").resolve()]
        assert counts.describe() == "1 unreadable folders"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = {"a.txt": GOOD, "a.jsonl": JSONL + row(text="x"), "a.csv": CSV + "x,2\n"}[name]
    put(b_txt=GOOD * 3)(tmp_path / "data")
    (tmp_path / "data" / name).write_text(content)
    read = read_corpus

    def shrink(*args: Any) -> Any:
        corpus = read(*args)
        with (tmp_path / "data" / name).open("r+b") as stream:
            stream.truncate(len(content) // 2)
        return corpus

    monkeypatch.setattr(text_module, "read_corpus", shrink)
    with pytest.raises(ValueError, match=rf"{name} has changed since it was read"):
        text(str(tmp_path / "data"), seq_len=16)


def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(a_txt=GOOD)(tmp_path / "data")

    def fill(file: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(streams, "sync", fill)
    with pytest.raises(ValueError, match=r"the tokens cannot be written to .*: No space left on device\nmake room"):
        text(str(tmp_path / "data"), seq_len=16)
    assert not list(cache.glob("[!.]*"))
    monkeypatch.undo()
    monkeypatch.setattr(text_module, "CACHE", cache)
    assert len(text(str(tmp_path / "data"), seq_len=16).train) > 10


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path, content: str) -> None:
    put(a_txt=GOOD)(tmp_path / "data")
    data = text(str(tmp_path / "data"), seq_len=16)
    next(cache.glob("*/meta.json")).write_text(content)
    assert text(str(tmp_path / "data"), seq_len=16).digest == data.digest


def test_a_cache_of_another_version_is_made_anew(tmp_path: Path, cache: Path) -> None:
    put(a_txt=GOOD)(tmp_path / "data")
    notes = text(str(tmp_path / "data"), seq_len=16).notes
    meta = next(cache.glob("*/meta.json"))
    write_record(meta, read_json(meta) | {"version": streams.VERSION + 1, "notes": ["of another version"]})
    assert text(str(tmp_path / "data"), seq_len=16).notes == notes


def test_a_cache_with_a_flipped_bit_or_a_cut_tokenizer_is_made_anew(tmp_path: Path, cache: Path) -> None:
    put(a_txt=GOOD)(tmp_path / "data")
    build = partial(text, str(tmp_path / "data"), seq_len=16, tokenizer=BPE(300))
    samples = torch.arange(10)
    whole = build().train[samples][0]
    damages: dict[str, Callable[[bytes], bytes]] = {"train.bin": lambda old: bytes([old[0] ^ 1]) + old[1:]}
    for name, damage in (damages | {"tokenizer.json": lambda old: old[:20]}).items():
        file = next(cache.glob(f"*/{name}"))
        file.write_bytes(damage(file.read_bytes()))
        assert torch.equal(build().train[samples][0], whole), name


Build = Callable[..., Any]
OTHERS: dict[str, tuple[Write, Build, str]] = {
    "labels of several texts are one": (
        put(a_csv="text,label\nx,a\nx,b\ny,a\n"), labelled_text, "1 texts with several classes"
    ),
    "labels in Latin-1": (put(a_csv=b"text,label\nx,caf\xe9\ny,b\n"), labelled_text, "1 not UTF-8"),
    "nested labels": (put(a_jsonl=row(text="x", label={"a": 1})), labelled_text, "1 rows with a dict in 'label'"),
    "a table of targets that is cut": (cut_table, partial(pairs, source="text", target="n"), "damaged parquet files"),
    "targets that are numbers": (put(a_jsonl=row(source="x", target=1)), pairs, "1 rows with a int in 'target'"),
    "text files in place of pairs": (put(a_txt=GOOD), pairs, "no row is left: 1 files that are no tables"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_refused_by_other_data_sets(tmp_path: Path, name: str) -> None:
    write, build, words = OTHERS[name]
    write(tmp_path / "data")
    with pytest.raises(ValueError, match=words):
        build(path=str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("data=text data.path=data", "1 rows with null in 'text'"),
        ("data=table model=bitmlp data.path=data/a.jsonl", "has one column, 'text'"),
        ("data=pairs data.path=data/a.jsonl data.source=text data.target=text", "are one column"),
    ],
)
def test_the_program_tells_it_and_leaves_no_run(tmp_path: Path, command: str, words: str) -> None:
    put(a_jsonl=JSONL + row(text=None))(tmp_path / "data")
    done = train(tmp_path, *command.split(), "tracker=none", fails=True)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
