"""study.json: what a sweep is for and how far it is. One class, one reader, one writer; imports no heavy library."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from research.contracts import contract
from research.ranges import take_fields
from research.run_dir import read_json, write_json

SWEEP_SPEC_FILE = "study.json"  # in the folder of a sweep
VERSION = 2
FINISHED_KEY = "over"  # the key of `finished` in the file, as it was from the first version on


@dataclass(frozen=True)
class StudySpec:
    """A sweep's command in short. The file of version 1 has the same keys without `version`."""

    study: str = ""  # its name in the storage
    digest: str = ""  # of all that makes it the same command
    total: int = 0  # trials; 0: not known
    finished: bool = False
    space: dict[str, str] = field(default_factory=dict)  # parameter -> its values, for people
    fixed: list[str] | None = None  # overrides that all runs have; None: not known, as for Hydra's basic sweeper
    directions: list[str] = field(default_factory=list)  # minimize | maximize, one an objective
    metrics: list[str] = field(default_factory=list)  # names of the objectives; empty: what the job returns
    repeats: dict[str, Any] = field(default_factory=dict)  # n, over, reduce
    kind: str = "study"  # grid | study
    max_failure_rate: float = 0.5
    reason: str = ""  # why it ended before its last trial
    version: int = VERSION

    @property
    def repeat_key(self) -> str:
        """The key whose values repeat one configuration."""
        return str(self.repeats.get("over", "seed"))

    @property
    def max_failures(self) -> int:
        """How many trials may fail before the sweep's command ends with an error; none of a grid."""
        return 0 if self.kind == "grid" else int(self.max_failure_rate * self.total + 1e-9)  # the product is rounded


def parse_study_spec(record: Mapping[str, Any], source: object = SWEEP_SPEC_FILE) -> StudySpec:
    """Return the spec of a JSON object that `source` holds; keys that it lacks have their defaults.

    Raise ValueError for a newer version.
    """
    version = record.get("version", 1)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f"{SWEEP_SPEC_FILE} has version {version}, this code reads up to {VERSION}: update grokbit")
    return StudySpec(
        **take_fields(StudySpec, record, source) | {"finished": bool(record.get(FINISHED_KEY)), "version": VERSION}
    )


@contract
def read_study_spec(folder: Path) -> StudySpec:
    """Return the spec in a sweep's folder; one of defaults where there is none. Raise ValueError for a newer version."""
    return parse_study_spec(read_json(folder / SWEEP_SPEC_FILE), folder / SWEEP_SPEC_FILE)


@contract
def write_study_spec(folder: Path, spec: StudySpec) -> None:
    """Write study.json, complete or not at all."""
    record = {FINISHED_KEY if key == "finished" else key: value for key, value in asdict(spec).items() if value is not None}
    write_json(folder / SWEEP_SPEC_FILE, record)
