"""What is judged, as a command line names it: runs, exports, folders of transformers. Imports nothing heavy."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from research.cli import format_count, print_message
from research.composition.recorded import load_config
from research.contracts import contract
from research.files.stage import EXPORT_FILE
from research.models.hub_folder import read_length
from research.preflight.evaluation import FOLDER
from research.run_dir import expand_path, list_checkpoints, read_json, to_run_folder
from research.tracking.find import check_run, find_source, is_run_folder, is_sweep_folder
from research.training.manifest import is_checkpoint

TOKENIZER_FILE, TOKENIZER_FOLDER = "tokenizer.json", "tokenizer"
BYTES = "research.data.tokenizers.Bytes"
Kind = Literal["run", "export", "pretrained"]
HINT = "give a run folder, one of its checkpoints/step-*, the folder of a sweep or an export, a save_pretrained folder"


@dataclass(frozen=True)
class ModelRef:
    """A model by its folder."""

    word: str  # as it was typed
    path: Path
    kind: Kind
    report: dict[str, Any] = field(default_factory=dict)  # of an export

    @cached_property
    def recorded(self) -> dict[str, Any]:
        """The configuration of a run; empty for the others."""
        return load_config(self.path)[0] if self.kind == "run" else {}

    @property
    def folder(self) -> Path:
        """The folder of a run, for any of its checkpoints; else the folder itself."""
        return to_run_folder(self.path) if self.kind == "run" else self.path

    @property
    def tokenizer_folder(self) -> Path:
        """Where the model's own tokenizer is, unless it is of bytes."""
        return self.folder / TOKENIZER_FOLDER if self.kind == "run" else self.path

    @property
    def has_tokenizer(self) -> bool:
        """Return whether its folder holds a tokenizer."""
        return (self.tokenizer_folder / TOKENIZER_FILE).is_file()

    @contract
    def has_same_tokenizer(self, other: "ModelRef") -> bool:
        """Return whether another model has the tokenizer of this one; an export writes that of bytes into a file."""
        if not self.has_tokenizer:
            return other.kind == "export" and other.report["model"].get("vocab") == 256
        own, others = ((ref.tokenizer_folder / TOKENIZER_FILE).read_bytes() for ref in (self, other))
        return own == others

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        """The node of the model's own tokenizer; None where it has none."""
        folder = self.tokenizer_folder
        if self.has_tokenizer:
            return {"_target_": FOLDER, "path": str(folder)}
        reads_bytes = self.kind == "export" and self.report["model"].get("vocab") == 256
        reads_bytes |= self.kind == "run" and (folder.is_dir() or "tokenizer" in (self.recorded.get("data") or {}))
        return {"_target_": BYTES} if reads_bytes else None

    @property
    def seq_len(self) -> int | None:
        """The number of tokens that the model was trained on, as far as its folder says."""
        if self.kind == "run":
            length = (self.recorded.get("data") or {}).get("seq_len")
        elif self.kind == "export":
            length = self.report["model"].get("length")
        else:
            length = read_length(read_json(self.path / "config.json"))
            length = min(length, 256) if length else None  # that of data=text
        return length if isinstance(length, int) else None


@contract
def find_models(words: Sequence[str]) -> list[ModelRef]:
    """Return what the words name, a sweep as its runs. Raise ValueError for what is none, and where nothing is left.

    Files and other folders of a sweep, as a pattern of the shell matches them, are left out, with a note.
    """
    refs, others = list[ModelRef](), list[str]()
    for word in words:
        path = Path(os.path.abspath(expand_path(word)))
        if len(words) > 1 and is_sweep_folder(path.parent) and path.exists() and not is_run_folder(path):
            others.append(path.name)
            continue
        refs += find_model(word)
    if others:
        print_message(f"note: {', '.join(others[:5])}{' and others' * (len(others) > 5)}: no runs, and left out")
    if not refs:
        raise ValueError(f"RUN={' '.join(words)[:200]}: there is no run that can be judged; {HINT}")
    return refs


def find_model(word: str) -> list[ModelRef]:
    """Return the model that one word names, or those of a sweep."""
    path = find_source(word, f"{HINT}, or an MLflow run id")
    if (path / EXPORT_FILE).is_file():
        return [ModelRef(word, path, "export", read_report(word, path))]
    if is_checkpoint(path) or is_run_folder(to_run_folder(path)):
        return [ModelRef(word, path, "run")]
    if is_sweep_folder(path):
        return list_runs(word, path)
    if (path / "config.json").is_file():
        return [ModelRef(word, path, "pretrained")]
    check_run(word)
    raise ValueError(f"RUN={word}: {path} holds no model; {HINT}")


@contract
def list_runs(word: str, folder: Path) -> list[ModelRef]:
    """Return the runs of a sweep that have a checkpoint, in the order of their numbers. Raise ValueError where none has."""
    runs = [path for path in folder.iterdir() if path.is_dir() and is_run_folder(path)]
    runs.sort(key=lambda path: (not path.name.isdecimal(), int(path.name) if path.name.isdecimal() else 0, path.name))
    saved = [path for path in runs if list_checkpoints(path)]
    if not saved:
        raise ValueError(f"RUN={word}: none of the {format_count(len(runs), 'run')} of this sweep has saved a checkpoint")
    if len(saved) < len(runs):
        print_message(
            f"note: {len(runs) - len(saved)} of {format_count(len(runs), 'run')} saved no checkpoint and are left out"
        )
    return [ModelRef(str(path), path, "run") for path in saved]


@contract
def read_report(word: str, path: Path) -> dict[str, Any]:
    """Return the report of an export. Raise ValueError where it cannot be read."""
    report = read_json(path / EXPORT_FILE)
    if not isinstance(report.get("model"), dict) or not isinstance(report.get("format"), str):
        raise ValueError(f"RUN={word}: its {EXPORT_FILE} is damaged; export the run again")
    return report


@contract
def name_models(refs: Sequence[ModelRef]) -> list[str]:
    """Return a short name of each: the end of its path that tells it from the others."""
    names = [ref.path for ref in refs]
    for count in range(1, max(len(path.parts) for path in names)):
        ends = ["/".join(path.parts[-count:]) for path in names]
        if len(set(ends)) == len(set(names)):
            return ends
    return [str(path) for path in names]
