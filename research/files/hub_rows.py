"""The rows of a split written to a copy; what was interrupted goes on where it came to."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from research.cli import print_message
from research.contracts import contract
from research.files.hub import CONTENT, INDEX, Request
from research.run_dir import read_json, write_record

PROGRESS_EVERY = 1 << 25  # bytes between two notes of how far it came
Row = Mapping[str, Any]


@contract
class Draft:
    """The files of one split, and how far they came."""

    def __init__(self, folder: Path, part: str, suffixes: tuple[str, ...]) -> None:
        self.note, self.part, self.files = folder / f"{part}.progress", part, dict[str, BinaryIO]()
        noted = read_json(self.note) if self.note.exists() else {}
        paths = {suffix: folder / f"{part}{suffix}" for suffix in suffixes}
        sizes = noted.get("sizes", {})
        if any(not paths[name].exists() or paths[name].stat().st_size < size for name, size in sizes.items()):
            noted, sizes = {}, {}  # a power cut has shortened them
        self.state, self.is_done = noted.get("state"), noted.get("is_done", False)
        self.num_samples, self.num_bytes = noted.get("num_samples", 0), noted.get("num_bytes", 0)
        self.held: list[str | None] = noted.get("held", [])  # rows of a document that may go on
        self.noted_bytes = self.num_bytes
        for suffix, path in paths.items():
            self.files[suffix] = path.open("r+b" if path.exists() else "w+b")
            self.files[suffix].truncate(sizes.get(suffix, 0))
            self.files[suffix].seek(0, os.SEEK_END)

    def add(self, size: int, **contents: bytes) -> None:
        """Append a sample of so many bytes; `contents` are by suffix, without its point."""
        for suffix, content in contents.items():
            self.files[f".{suffix}"].write(content)
        self.num_samples += 1
        self.num_bytes += size

    def save(self, state: Any, is_done: bool = False) -> None:
        """Note how far it came, once the files outlive a power cut."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.noted_bytes = self.num_bytes
        sizes = {suffix: file.tell() for suffix, file in self.files.items()}
        facts = {"num_samples": self.num_samples, "num_bytes": self.num_bytes, "held": self.held, "is_done": is_done}
        write_record(self.note, facts | {"sizes": sizes, "state": state})

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()


@contract
def write_split(folder: Path, part: str, rows: Any, request: Request) -> int:
    """Write a split, or go on with it; return the number of its samples. `rows` is a stream that tells its state."""
    draft = Draft(folder, part, (INDEX,) if request.kind == "text" else (INDEX, CONTENT))
    try:
        if not draft.is_done:
            if draft.state is not None:
                rows.load_state_dict(draft.state)
            add = TextAdder(draft, request) if request.kind == "text" else ImageAdder(draft, request)
            for row in rows:
                if not add.take(row):
                    break
                if draft.num_bytes - draft.noted_bytes >= PROGRESS_EVERY:
                    draft.save(rows.state_dict())
                    print_message(f"{request.dataset}: {draft.num_bytes / 1e6:,.0f} MB of {part} are there")
            else:
                add.finish()
            draft.held = []
            draft.save(None, is_done=True)
        return int(draft.num_samples)
    finally:
        draft.close()


class TextAdder:
    """Makes documents of rows: each one, or with `document_start` all up to the next row that matches."""

    def __init__(self, draft: Draft, request: Request) -> None:
        self.draft, self.columns = draft, request.columns
        self.start = re.compile(request.document_start) if request.document_start else None
        is_limited = draft.part == "train"
        self.max_samples, self.max_bytes = (request.max_samples, request.max_bytes) if is_limited else (None, None)

    def take(self, row: Row) -> bool:
        """Add a row; return whether another one is wanted."""
        texts = [row[name] for name in self.columns]
        text = None if None in texts else "\n".join(texts)
        if self.start and self.draft.held and not (text and self.start.match(text)):
            self.draft.held.append(text or "")
            return True
        is_open = self.finish()
        self.draft.held = [text]
        return is_open

    def finish(self) -> bool:
        """Write the document that is held, unless it is beyond a limit; return whether another one fits."""
        draft, parts = self.draft, self.draft.held
        if not parts:
            return True
        text = (
            parts[0]
            if len(parts) == 1
            else "".join(f"{part or ''}\n" if not (part or "").endswith("\n") else str(part) for part in parts)
        )
        line = json.dumps({"text": text}, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
        size = len((text or "").encode(errors="surrogatepass"))
        if self.max_bytes and draft.num_samples and draft.num_bytes + size > self.max_bytes:
            return False
        draft.add(size, jsonl=line)
        return not (self.max_samples and draft.num_samples >= self.max_samples)


class ImageAdder:
    """Writes the contents of images one after the other, and an index of their sizes and classes."""

    def __init__(self, draft: Draft, request: Request) -> None:
        self.draft, self.columns = draft, request.columns
        self.max_samples = request.max_samples if draft.part == "train" else None

    def take(self, row: Row) -> bool:
        """Add an image; return whether another one is wanted."""
        image, label = (row[name] for name in self.columns)
        content = read_content(image)
        self.draft.add(len(content), bin=content, jsonl=json.dumps({"size": len(content), "label": label}).encode() + b"\n")
        return not (self.max_samples and self.draft.num_samples >= self.max_samples)

    def finish(self) -> bool:
        """Return True: nothing is held."""
        return True


def read_content(image: Mapping[str, Any] | None) -> bytes:
    """Return the bytes of an image's file; none where the cell is empty."""
    if image is None:
        return b""
    if image.get("bytes") is not None or not image.get("path"):
        return image.get("bytes") or b""
    import fsspec

    with fsspec.open(image["path"], "rb") as stream:  # also of the hub, or within an archive
        return bytes(stream.read())
