"""What is in files of every kind: each document once, each defect named or counted, nothing dropped in silence."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from research.data.corpus import LEFT_OUT, Corpus, Reader, read_corpus
from research.files.sources import Counts, find_files

UTF8 = Reader("auto", ("text",), "utf-8")
LONG = "a line of more than forty bytes, which is long enough to count\n"


def read(folder: Path, reader: Reader = UTF8, skip: bool = False, pattern: str | None = None) -> tuple[set[bytes], Counts]:
    """Return the documents below a folder, and the counts of what was left out."""
    counts = Counts()
    corpus = read_corpus(find_files(str(folder), pattern, counts), reader, (0.2, 0.0), skip, counts)
    return collect(corpus), counts


def collect(corpus: Corpus) -> set[bytes]:
    """Return the texts of all documents in all splits."""
    texts = [b"".join(pieces) for name in ("train", "val", "test") for pieces in corpus.iter_documents(name)]
    assert len(set(texts)) == len(texts), "each document is in one split"
    return set(texts)


def write_rows(path: Path, *rows: object) -> None:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


def test_each_kind_of_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.md").write_text("# marked")
    write_rows(tmp_path / "c.jsonl", {"text": "row one", "n": 1}, {"text": "row two"})
    (tmp_path / "d.csv").write_text('id,text\n1,"cell, with a comma"\n2,"cell\nof two lines"\n')
    (tmp_path / "e.tsv").write_text("text\tid\ntabbed\t1\n")
    (tmp_path / "semicolons.csv").write_text("id;text\n1;other\n")
    parquet.write_table(pyarrow.table({"text": ["stored", "twice"], "n": [1, 2]}), tmp_path / "f.parquet")
    texts, counts = read(tmp_path)
    assert texts == {
        b"plain", b"# marked", b"row one", b"row two", b"cell, with a comma", b"cell\nof two lines", b"tabbed", b"other",
        b"stored", b"twice",
    }  # fmt: skip
    assert not counts.numbers


# What is in a file beside one good document -> the kind that is counted. Without defects=skip it is refused.
ROWS: dict[str, tuple[str, bytes, str]] = {
    "a line that is no JSON": ("a.jsonl", b'{"text": "good"}\n{"text": \n', "1 lines that are no JSON"),
    "a list in place of an object": ("a.jsonl", b'{"text": "good"}\n[1, 2]\n', "1 lines that are no JSON object"),
    "deep JSON": ("a.jsonl", b'{"text": "good"}\n' + b"[" * 100_000 + b"\n", "1 lines that are no JSON"),
    "a row without the key": ("a.jsonl", b'{"text": "good"}\n{"body": "x"}\n', "1 rows without data.field=text"),
    "null": ("a.jsonl", b'{"text": "good"}\n{"text": null}\n', "1 rows with null in 'text'"),
    "a number": ("a.jsonl", b'{"text": "good"}\n{"text": 3}\n', "1 rows with a int in 'text'"),
    "half a surrogate pair": ("a.jsonl", b'{"text": "good"}\n{"text": "\\ud800"}\n', "1 rows with half a surrogate pair"),
    "a line in Latin-1": ("a.jsonl", b'{"text": "good"}\n{"text": "\xe9"}\n', "1 not UTF-8"),
    "a ragged row": ("a.csv", b"text,n\ngood,1\nbad\n", "1 rows with more or fewer cells than the header"),
    "a long row": ("a.csv", b"text,n\ngood,1\nbad,1,2\n", "1 rows with more or fewer cells than the header"),
    "a quote that stays open": ("a.csv", b'text,n\ngood,1\n"bad,1\n', "1 rows that are no CSV"),
    "a quote that takes the rest": ("a.csv", b'text,n\ngood,1\n"bad,1\ngood,2\ngood,3\n', "3 rows that are no CSV"),
    "two stray quotes": ("a.csv", b'text,n\ngood,1\n"bad,1\ngood,2\nbad",3\n', "3 rows within one pair of quotes"),
    "an array": ("bad.jsonl", b'[{"text": "bad"},\n{"text": "worse"}]\n', "1 files of one JSON value"),
    "an object of several lines": ("bad.jsonl", b'{\n"text": "bad"\n}\n', "1 files of one JSON value"),
    "a table without the column": ("bad.csv", b"body\ngood\n", "1 tables without data.field=text"),
    "a table with the column twice": ("bad.csv", b"text,text\ngood,1\n", "1 tables without data.field=text"),
    "a table in Latin-1": ("a.csv", b"text\ngood\n\xe9t\xe9\n", "1 not UTF-8"),
    "a file in Latin-1": ("bad.txt", b"caf\xe9", "1 not UTF-8"),
    "a file cut within a character": ("bad.txt", "café".encode()[:-1], "1 not UTF-8"),
    "UTF-16": ("bad.txt", "text".encode("utf-16"), "1 not UTF-8"),
    "NUL bytes": ("bad.txt", b"te\0xt", "1 with NUL bytes, so no text"),
    "a damaged parquet file": ("bad.parquet", b"PAR1 and no more", "1 damaged parquet files"),
    "an empty parquet file": ("bad.parquet", b"", "1 damaged parquet files"),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_cannot_be_read_is_refused_or_counted(tmp_path: Path, name: str) -> None:
    file, content, kind = ROWS[name]
    (tmp_path / file).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "fine.txt").write_text("fine")
    with pytest.raises(ValueError, match=r"data\.path: ") as error:
        read(tmp_path)
    assert kind in str(error.value)
    assert file in str(error.value), "the file is named"
    assert "data.defects=skip" in str(error.value)
    texts, counts = read(tmp_path, skip=True)
    assert texts == {b"good", b"fine"}
    assert kind in counts.describe()


def test_a_sentence_of_several_lines_is_a_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\n"Dear John,\nthank you",1\n"One, two, three:\nfour.",2\n')
    assert read(tmp_path)[0] == {b"Dear John,\nthank you", b"One, two, three:\nfour."}


def test_json_of_an_object_a_line_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.json", {"text": "one"}, {"text": "two"})
    assert read(tmp_path / "a.json")[0] == read(tmp_path, pattern="*.json")[0] == {b"one", b"two"}
    (tmp_path / "a.json").write_text('[{"text": "one"}]')
    with pytest.raises(ValueError, match=r"convert them to JSONL: an object a line.: .*/a\.json"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_the_kind_of_a_file_is_that_of_the_name_of_its_link(tmp_path: Path, suffix: str) -> None:
    for folder in ("blobs", "shown"):
        (tmp_path / folder).mkdir()
    blob, link = tmp_path / "blobs" / "1f0e", tmp_path / "shown" / f"train.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.table({"text": ["one", "two"]}), blob)
    else:
        blob.write_text('{"text": "one"}\n{"text": "two"}\n' if suffix == "jsonl" else "text\none\ntwo\n")
    link.symlink_to("../blobs/1f0e")
    (tmp_path / "shown" / f"again.{suffix}").symlink_to("../blobs/1f0e")
    (tmp_path / "latest").symlink_to(f"shown/train.{suffix}")
    texts = {b"one", b"two"}
    for path, pattern in ((tmp_path / "shown", None), (link, None), (tmp_path, "*"), (tmp_path / "shown", "t*")):
        assert read(path, pattern=pattern)[0] == texts
        assert len(find_files(str(path), pattern, Counts())) == 1
    (tmp_path / "of a file").mkdir()
    (tmp_path / "of a file" / f"x.{suffix}").write_bytes(blob.read_bytes())
    (tmp_path / "plain").symlink_to(f"of a file/x.{suffix}")
    assert read(tmp_path / "plain")[0] == texts


def test_all_files_with_a_defect_are_in_one_list(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match="12 not UTF-8") as error:
        read(tmp_path)
    assert "and 7 more" in str(error.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.csv": b"id,body\n1,x\n"}, "has no column 'text' (give data.field=COLUMN, one of id, body)"),
        ({"a.csv": b"text,text\n1,x\n"}, "has several columns 'text'"),
        ({"a.csv": b""}, "has no column 'text'"),
        ({"a.png": b"\x89PNG"}, "no file below"),
        ({}, "it is empty"),
        ({"a.txt": b" \n\t\n"}, "holds no text: 1 empty"),
        ({"a.jsonl": b""}, "holds no text"),
    ],
)
def test_what_holds_no_text_is_refused(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.(path|pattern|field)") as error:
        read(tmp_path)
    assert words in str(error.value)


def test_a_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has int64 there, no text"):
        read(tmp_path)


def test_repeats_are_seen_through_marks_and_line_ends(tmp_path: Path) -> None:
    text = "one\ntwo\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "c.txt").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "d.txt").write_text("other")
    write_rows(tmp_path / "e.jsonl", {"text": text})
    texts, counts = read(tmp_path)
    assert texts == {b"one\ntwo\n", b"other"}
    assert counts.describe() == "3 repeated"


@pytest.mark.parametrize(
    ("encoding", "content", "is_told"),
    [
        *((encoding, "cafй".encode(), True) for encoding in ("latin-1", "cp1252", "koi8-r")),
        ("latin-1", "café".encode("latin-1"), False),
        *((encoding, "café 中".encode(encoding, "ignore"), False) for encoding in ("utf-8", "gbk", "utf-16", "shift_jis")),
    ],
)
def test_text_of_utf_8_is_not_read_as_another_encoding(encoding: str, content: bytes, is_told: bool, tmp_path: Path) -> None:
    """Its letters would be others, without an error. Plain ASCII is the same in both."""
    (tmp_path / "a.txt").write_bytes("plain text".encode(encoding))
    (tmp_path / "b.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"1 UTF-8, not .*\n.*b.txt") if is_told else nullcontext():
        read(tmp_path, UTF8._replace(encoding=encoding))


def test_a_stated_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("été".encode("latin-1"))
    texts, _ = read(tmp_path, UTF8._replace(encoding="latin-1"))
    assert texts == {"café".encode(), "été".encode()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32"])
def test_repeats_of_other_line_ends_are_seen_in_long_files(tmp_path: Path, encoding: str) -> None:
    lines = [f"line {number} of a text of many pieces" for number in range(6000)]
    for name, end in (("a", "\n"), ("b", "\r\n")):
        (tmp_path / f"{name}.txt").write_bytes(end.join(lines).encode(encoding))
    assert read(tmp_path, UTF8._replace(encoding=encoding))[1].describe() == "1 repeated"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "shift_jis"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_of_letters_of_several_bytes_are_read(tmp_path: Path, encoding: str, suffix: str) -> None:
    rows = {"jsonl": '{"text": "一\\n"}\n \n{"text": "ア"}', "csv": 'text,n\n"一\n",1\nア,2\n'}
    (tmp_path / f"a.{suffix}").write_bytes(rows[suffix].encode(encoding))
    assert read(tmp_path, UTF8._replace(encoding=encoding))[0] == {"一\n".encode(), "ア".encode()}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_without_the_mark_of_their_encoding_are_one_defect(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes('{"text": "x"}\n'.encode("utf-16-le"))
    with pytest.raises(ValueError, match=rf"data.path: 1 not UTF-16\n  not UTF-16: .*a.{suffix}\n"):
        read(tmp_path, UTF8._replace(encoding="utf-16"))


def test_several_fields_are_joined(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", {"title": "T", "body": "B"}, {"title": "U", "body": "C"})
    texts, _ = read(tmp_path, UTF8._replace(field=("title", "body")))
    assert texts == {b"T\nB", b"U\nC"}


def test_links_in_a_circle_end_and_broken_ones_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "again.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "none")
    texts, counts = read(tmp_path)
    assert texts == {b"a", b"b"}
    assert counts.describe() == "1 broken links or devices"


def test_other_kinds_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.png").touch()
    (tmp_path / "Makefile").touch()
    assert read(tmp_path)[1].describe() == "1 .png files, 1 files without a suffix"


def test_a_huge_line_streams(tmp_path: Path) -> None:
    text = "é" * 300_000
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("b")
    texts, _ = read(tmp_path)
    assert texts == {text.encode(), b"b"}


@pytest.mark.parametrize("change", [lambda path: path.write_text("x"), lambda path: path.unlink()])
def test_a_file_that_changes_between_the_readings_is_named(tmp_path: Path, change: Callable[[Path], object]) -> None:
    write_rows(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    corpus = read_corpus([tmp_path / "a.jsonl"], UTF8, (0.5, 0.0), False, Counts())
    change(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="has changed since it was read"):
        collect(corpus)


def test_documents_are_split_whole_and_the_splits_do_not_depend_on_names(tmp_path: Path) -> None:
    for folder, names in (("a", range(10)), ("b", reversed(range(10)))):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            (tmp_path / folder / f"{name}.txt").write_text(f"document {number}")
    splits = []
    for folder in ("a", "b"):
        corpus = read_corpus(find_files(str(tmp_path / folder), None, Counts()), UTF8, (0.2, 0.3), False, Counts())
        splits.append([[b"".join(document) for document in corpus.iter_documents(name)] for name in ("train", "val", "test")])
    assert splits[0] == splits[1]
    assert [len(split) for split in splits[0]] == [5, 2, 3]
    assert corpus.num_val_bytes == len(b"".join(splits[0][1]))


def test_a_single_document_is_cut_at_a_line_into_all_splits(tmp_path: Path) -> None:
    lines = [f"line {number:5}\n" for number in range(20_000)]
    (tmp_path / "a.txt").write_text("".join(lines))
    corpus = read_corpus([tmp_path / "a.txt"], UTF8, (0.1, 0.2), False, Counts())
    train, val, test = (b"".join(next(corpus.iter_documents(name))).decode() for name in ("train", "val", "test"))
    assert train + test + val == "".join(lines)
    assert corpus.num_val_bytes == len(val)
    assert [round(len(part) / 220_000, 3) for part in (train, test, val)] == [0.7, 0.2, 0.1]
    assert all(part.endswith("\n") for part in (train, test, val))


@pytest.mark.parametrize("text", ["漢字" * 5001, "aé" * 5001, "\U0001f600" * 2501, f"first line\n{'漢' * 5000}"])
def test_a_single_document_without_line_ends_is_cut_at_letters(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    corpus = read_corpus([tmp_path / "a.txt"], UTF8, (0.1, 0.2), False, Counts())
    train, val, test = (b"".join(next(corpus.iter_documents(name))).decode() for name in ("train", "val", "test"))
    assert train + test + val == text
    assert [round(len(part.encode()) / len(text.encode()), 2) for part in (train, test, val)] == [0.7, 0.2, 0.1]


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"), [(2, (0.9, 0.0), [1, 1, 0]), (3, (0.9, 0.05), [1, 1, 1]), (3, (0.3, 0.3), [1, 1, 1])]
)
def test_each_split_has_a_document(tmp_path: Path, count: int, fractions: tuple[float, float], sizes: list[int]) -> None:
    write_rows(tmp_path / "a.jsonl", *({"text": f"row {number}"} for number in range(count)))
    corpus = read_corpus([tmp_path / "a.jsonl"], UTF8, fractions, False, Counts())
    assert [corpus.count_documents(name) for name in ("train", "val", "test")] == sizes


def test_two_documents_are_no_three_splits(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    with pytest.raises(ValueError, match=r"data.test_fraction=0.4: two documents cannot be split in three\ngive more"):
        read_corpus([tmp_path / "a.jsonl"], UTF8, (0.5, 0.4), False, Counts())


def test_which_of_repeats_is_read_does_not_depend_on_names(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}\n"} for number in range(9)]
    read_in_order: list[list[bytes]] = []
    for folder, names in (("a", "xyz"), ("b", "zyx")):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / f"{names[0]}.jsonl", *rows[:6])
        write_rows(tmp_path / folder / f"{names[1]}.jsonl", *rows[3:])
        write_rows(tmp_path / folder / f"{names[2]}.jsonl", *({"text": f"row {number}\r\n"} for number in range(9)))
        corpus = read_corpus(find_files(str(tmp_path / folder), None, Counts()), UTF8, (0.2, 0.0), False, Counts())
        read_in_order.append([b"".join(document) for name in ("train", "val") for document in corpus.iter_documents(name)])
    assert read_in_order[0] == read_in_order[1]
    assert len(read_in_order[0]) == 9


def test_what_is_left_out_is_in_no_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", {"text": "one"}, {"text": ""}, {"text": "one"}, {"text": "two"})
    corpus = read_corpus([tmp_path / "a.jsonl"], UTF8, (0.5, 0.0), False, Counts())
    assert [int(split) == LEFT_OUT for split in corpus.splits[0]] == [False, True, True, False]
