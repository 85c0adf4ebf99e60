"""Fill a copy of a data set by the `datasets` library: python -m research.files.hub_fill REQUEST FOLDER, as hub.py starts it.

Rows are streamed in the order of the data set. So memory is fixed, and a copy that was interrupted goes on where it came to.
"""

import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.cli import first_line
from research.contracts import contract
from research.files.cache import hash_file, wait_for_lock
from research.files.hub import AUTO, CONTENT, INDEX, META, OFFLINE, VERSION, Request, find_home, read_copy
from research.files.hub_rows import write_split
from research.files.network import is_set_offline
from research.run_dir import make_folder, sync, write_record

OWN_NAMES = {"val": ("validation", "val", "valid", "dev"), "test": ("test",)}  # what sets call such splits
NUM_NAMES = 20  # that a message lists
COLUMN_KEYS = {"text": ("field",), "images": ("image", "label")}
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
log = logging.getLogger(__name__)


def fill(request: Request, folder: Path) -> None:
    """Write the copy of what is requested, unless it is there; another process that does is waited for.

    Raise ValueError for data sets, configurations, splits and columns that are not there, naming those that are.
    """
    with wait_for_lock(folder.parent / f".{folder.name}", "reads this data set"):
        if read_copy(folder):
            return
        source = Source(request)
        names = {part: name for part in request.splits if (name := source.choose(part))}
        for part in ("val", "test"):
            first = next((other for other in names if names[other] == names.get(part)), part)
            if first != part:
                message = f"data.{part}_split={names[part]} is data.{first}_split, too"
                raise ValueError(f"{message}\ngive data.{part}_split=null: the split is made here")
        streams = {part: source.open(part, name) for part, name in names.items()}
        columns = {part: Columns(request, rows, names[part]) for part, rows in streams.items()}
        draft = folder.parent / f".{folder.name}" / "draft"
        make_folder(draft)
        digests = dict[str, str]()
        for part, rows in columns.items():
            if not write_split(draft, part, rows.rows, request):
                raise ValueError(f"data.{part}_split={names[part]}: it is empty\ngive another split, or null")
            digests |= {
                file.name: hash_file(file) for file in (draft / f"{part}{INDEX}", draft / f"{part}{CONTENT}") if file.exists()
            }
        record = {"splits": names, "digests": digests, "classes": columns["train"].classes, "revision": source.revision}
        write_record(draft / META, {"version": VERSION} | record)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
        sync(folder.parent)


class Source:
    """A data set that was found, and the streams of its splits by its own names."""

    @contract
    def __init__(self, request: Request) -> None:
        path = request.dataset
        if not request.is_folder and is_set_offline():
            path = find_snapshot(request)  # where there is nothing, the answer does not wait for the library
        import datasets

        datasets.logging.set_verbosity_error()
        self.request, self.builder, self.revision = request, None, ""
        if any(Path(request.dataset, name).is_file() for name in SAVED):
            saved = datasets.load_from_disk(request.dataset)
            splits = saved if isinstance(saved, dict) else {"train": saved}
            self.streams = {str(name): rows.to_iterable_dataset() for name, rows in splits.items()}
            return
        try:
            cache = str(find_home() / "datasets")
            self.builder = datasets.load_dataset_builder(path, request.config_name, revision=request.revision, cache_dir=cache)
            self.streams = dict(self.builder.as_streaming_dataset())
        except Exception as error:
            raise ValueError(describe_failure(error, request, path)) from error
        self.revision = "" if request.is_folder else Path(path).name if path != request.dataset else str(self.builder.hash)

    def choose(self, part: str) -> str:
        """Return the name or expression of a split: what is requested, else the set's own; empty for none."""
        wanted = self.request.splits[part]
        if wanted == AUTO:
            return next((name for name in OWN_NAMES[part] if name in self.streams), "")
        return wanted or ""

    def open(self, part: str, name: str) -> Any:
        """Return the rows of a split. Raise ValueError where there is no such split."""
        if name in self.streams:
            return self.streams[name]
        first = f"data.{part}_split={name}: {self.request.dataset}"
        known = list_names(list(self.streams))
        if "[" not in name and "+" not in name:
            raise ValueError(f"{first} has no such split\ngive one of {known}")
        if self.builder is None:
            raise ValueError(f"{first} was written by save_to_disk, whose splits are read whole\ngive one of {known}")
        self.builder.download_and_prepare()  # the library takes parts of what it has written whole, below `find_home`
        try:
            return self.builder.as_dataset(split=name).to_iterable_dataset()
        except ValueError as error:
            example = f"{next(iter(self.streams))}[:10%]"
            raise ValueError(f"{first}: {first_line(error)}\ngive one of {known}, or a part as {example}") from error


def find_snapshot(request: Request) -> str:
    """Return the folder of what the hub's cache has of a data set. Raise ValueError where it has nothing."""
    from huggingface_hub import snapshot_download

    for cache in (find_home() / "hub", Path.home() / ".cache/huggingface/hub"):
        try:
            kind = {"repo_type": "dataset", "revision": request.revision, "local_files_only": True}
            return str(snapshot_download(request.dataset, cache_dir=cache, **kind))
        except Exception as error:  # an id that is none, too
            log.debug("%s has no %s: %s", cache, request.dataset, error)
    raise ValueError(describe_offline(request))


def describe_offline(request: Request) -> str:
    """Return the message of a data set that cannot be looked up."""
    return f"data.dataset={request.dataset}: there is no such folder, and the hub cannot be reached\n{OFFLINE}"


def describe_failure(error: Exception, request: Request, path: str) -> str:
    """Return the message of a data set that cannot be opened."""
    import datasets

    first, text = f"data.dataset={request.dataset}", str(error)
    page = f"https://huggingface.co/datasets/{request.dataset}"
    if isinstance(error, ValueError) and ("Config name is missing" in text or "BuilderConfig" in text):
        names = list_names(datasets.get_dataset_config_names(path, revision=request.revision))
        problem = f"has no configuration {request.config_name}" if request.config_name else "has several configurations"
        return f"data.config_name={request.config_name or 'null'}: {request.dataset} {problem}\ngive one of {names}"
    known = {  # part of the library's message -> ours, and what to do
        "gated": ("its owner gives access to those who ask", f"accept its terms at {page}, and set HF_TOKEN"),
        "Revision": (f"it has no revision {request.revision}", f"give one that {page} lists"),
        "scripts are no longer": ("it is a script, and programs of data sets are not run", "give a copy in parquet"),
        "doesn't exist on the Hub": (
            "neither the hub nor this folder has it",
            "mind its OWNER/NAME; a private one needs HF_TOKEN",
        ),
    }
    for part, (problem, fix) in known.items():
        if part in text:
            return f"{first}: {problem}\n{fix}"
    if path == request.dataset and not request.is_folder and is_about_network(error):
        return describe_offline(request)
    if isinstance(error, FileNotFoundError):
        return f"{first} holds no files in the hub's layout\ngive a folder with train-00000-of-00001.parquet, or data=text"
    return f"{first}: {type(error).__name__}: {first_line(error)}\nmend its files, or read them by data=text data.path=FILES"


def is_about_network(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is of a connection."""
    names = ("ConnectionError", "ConnectError", "TimeoutException", "OfflineModeIsEnabled", "LocalEntryNotFoundError")
    while error is not None:
        if any(kind.__name__ in names for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


@contract
def list_names(names: Sequence[str]) -> str:
    """Return names for a message."""
    return ", ".join(names[:NUM_NAMES]) + f" and {len(names) - NUM_NAMES} more" * (len(names) > NUM_NAMES)


class Columns:
    """The columns of a split that are read. Raise ValueError for those that are not there, or of another kind."""

    def __init__(self, request: Request, rows: Any, split: str) -> None:
        import datasets

        features = rows.features or infer_features(rows)
        for number, name in enumerate(request.columns):
            key = COLUMN_KEYS[request.kind][min(number, len(COLUMN_KEYS[request.kind]) - 1)]
            fits = {"field": is_text, "image": is_image, "label": is_class}[key]
            known = list_names([str(other) for other in features if fits(features[other])]) or "another data set: it has none"
            kinds = {"field": "of text", "image": "of images", "label": "of classes"}
            first = f"data.{key}={name}: the split {split} of {request.dataset}"
            if name not in features:
                raise ValueError(f"{first} has no such column\n{kinds[key]} there are: {known}")
            if not fits(features[name]):
                raise ValueError(f"{first} has {describe_feature(features[name])} there\n{kinds[key]} there are: {known}")
        self.rows = rows.select_columns(list(request.columns)) if features else rows
        self.classes: list[str] | None = None
        if request.kind == "images":
            image, label = (features[name] for name in request.columns)
            self.classes = list(label.names) if isinstance(label, datasets.ClassLabel) else None
            if isinstance(image, datasets.Image):
                self.rows = self.rows.cast_column(request.columns[0], datasets.Image(decode=False))


def infer_features(rows: Any) -> dict[str, Any]:
    """Return the kinds of the columns by the first row, as for files that do not tell them."""
    import datasets

    return {
        name: datasets.Value("string" if isinstance(value, str) else "int64")
        for row in rows.take(1)
        for name, value in row.items()
    }


@contract
def is_text(feature: Any) -> bool:
    """Return whether a column holds texts."""
    return getattr(feature, "dtype", "") in ("string", "large_string")


def is_image(feature: Any) -> bool:
    """Return whether a column holds images: as such, or as their contents beside a name."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


@contract
def is_class(feature: Any) -> bool:
    """Return whether a column holds classes: names, whole numbers, or true and false."""
    import datasets

    is_number = re.fullmatch(r"u?int\d+|bool", getattr(feature, "dtype", "")) is not None
    return isinstance(feature, datasets.ClassLabel) or is_text(feature) or is_number


def describe_feature(feature: Any) -> str:
    """Return what a column holds, as a word."""
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def end_with_parent() -> None:
    """End this process once the one that started it has ended: it holds the other end of stdin."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Fill a copy; print {"error": message}, which is empty where all went well."""
    answer, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints
    threading.Thread(target=end_with_parent, daemon=True).start()
    words = json.loads(sys.argv[1])
    request, error = Request(**words | {"columns": tuple(words["columns"])}), ""
    try:
        fill(request, Path(sys.argv[2]))
    except ValueError as failure:
        error = str(failure)
    except OSError as failure:
        fix = "start again, with room on the disk and a network: it goes on where it came to"
        error = f"data.dataset={request.dataset}: {type(failure).__name__}: {first_line(failure)}\n{fix}"
    except Exception as failure:  # of a library, of many kinds
        error = describe_failure(failure, request, request.dataset)
    print(json.dumps({"error": error}), file=answer, flush=True)
    os._exit(0)  # the readers of the library that are left open complain when they are collected


if __name__ == "__main__":
    main()
