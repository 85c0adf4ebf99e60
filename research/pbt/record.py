"""population.json: what a population is for, and each member that has ended. One class, one reader, one writer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from research.pbt.evolve import Member
from research.run_dir import read_json, write_json

POPULATION_FILE = "population.json"  # in the folder of the sweep
VERSION = 2


@dataclass(frozen=True)
class PopulationRecord:
    """A population so far. The file of version 1 has the same keys without `version`."""

    digest: str = ""  # of `requested`
    finished: bool = False  # "over" in the file
    requested: dict[str, Any] = field(default_factory=dict)  # "asked" in the file: must be the same where it is resumed
    members: Sequence[Member] = ()
    version: int = VERSION


def read_population(folder: Path) -> PopulationRecord:
    """Return the record in a sweep's folder; an empty one where there is none. Raises ValueError for a newer version."""
    record = read_json(folder / POPULATION_FILE)
    if not isinstance(version := record.get("version", 1), int) or version > VERSION:
        raise ValueError(f"{folder / POPULATION_FILE} has version {version}, this code reads up to {VERSION}: update grokbit")
    members = [Member(**member) for member in record.get("members", ())]
    return PopulationRecord(record.get("digest", ""), bool(record.get("over")), record.get("asked") or {}, members)


def write_population(folder: Path, record: PopulationRecord) -> None:
    """Write population.json, complete or not at all."""
    content = {"version": record.version, "digest": record.digest, "over": record.finished, "asked": record.requested}
    write_json(folder / POPULATION_FILE, content | {"members": [asdict(member) for member in record.members]})
