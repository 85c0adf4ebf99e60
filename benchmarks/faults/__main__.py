"""A campaign of faults: what is left of a training after kill -9, damage, a full disk, signals, a store that is gone.

    python -m benchmarks.faults [--kills 200] [--only saves,files,room,runs] [--no-peers] [--table experiments/faults]

A system survives a fault if training resumes by itself from the newest checkpoint that was complete and is not damaged.
Peers save the same numbers at each step in their own way. With `--kills 200` each peer is killed 25 times, a bit is flipped
in 25 positions of each file, and one of our runs is ended 10 times in each of its phases.
"""

import importlib
import random
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.faults import runs, saves
from benchmarks.faults.saves import Row
from benchmarks.faults.systems import PEERS, Grokbit, System

Systems = list[type[System]]
PARTS = ("saves", "files", "room", "runs")
BEGIN, END = "<!-- table: make faults writes it -->\n", "<!-- end of table -->"


def try_faults(part: str, kills: int, systems: Systems) -> Iterator[Row]:
    """Yield the rows of a part, each once its fault was tried."""
    if part == "saves":
        for system in systems:
            yield saves.kill_in_save(system, kills if system is Grokbit else max(1, kills // 8))
    elif part == "files":
        yield saves.swap_manifest()
        for system in systems:
            yield from saves.damage_files(system, max(5, kills // 8))
    elif part == "room":
        yield from map(saves.save_to_full_disk, systems)
    else:
        for signum, phases in ((signal.SIGKILL, ("steps", "evaluations")), (signal.SIGTERM, runs.PHASES)):
            for phase in phases:
                yield runs.interrupt_run(phase, signum, max(1, kills // 20))
        yield runs.run_twice()
        yield from map(runs.run_without_space, (False, True))
        yield from map(runs.run_without_store, (False, True))


def write_table(folder: Path, rows: list[Row]) -> None:
    """Write results.csv, and the table of README.md if that file exists: a line for each fault, a column for each system."""
    from experiments.base import format_table, write_csv

    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "results.csv", list(asdict(rows[0])), map(asdict, rows))
    systems, faults = (list(dict.fromkeys(names)) for names in ((row.system for row in rows), (row.fault for row in rows)))
    cells = {(row.fault, row.system): row.format_cell() for row in rows}
    lines = [[fault, *(cells.get((fault, system), "") for system in systems)] for fault in faults]
    if (readme := folder / "README.md").exists():
        head, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(f"{head}{BEGIN}{format_table(['fault', *systems], lines)}\n{END}{rest.partition(END)[2]}")


def main(kills: int, only: list[str], no_peers: bool, table: Path | None) -> harness.Results:
    random.seed(0)
    peers = [] if no_peers else PEERS
    systems: Systems = [Grokbit, *(peer for peer in peers if harness.has_peer(peer.name, peer.package, *peer.package.split()))]
    # The children are forks of this process: it has one compute thread and has done the slow imports.
    torch.set_num_threads(1)
    for package in filter(None, (system.package for system in systems)):
        importlib.import_module(package)
    print(f"{'fault':<34}{'system':<24}{'times':>6}{'survived':>9}{'error':>6}{'lost':>5}{'wrong':>6}  remark")
    rows = []
    for row in (row for part in only for row in try_faults(part, kills, systems)):
        rows.append(row)
        counts = f"{row.times:>6}{row.survived:>9}{row.error:>6}{row.lost:>5}{row.wrong:>6}"
        print(f"{row.fault:<34}{row.system:<24}{counts}  {row.remark}".rstrip(), flush=True)
    if table:
        write_table(table, rows)
    ours = [row for row in rows if row.system == Grokbit.name]
    share = sum(row.survived for row in ours) / max(1, sum(row.times for row in ours))
    return {"survived": share, "wrong": sum(row.wrong for row in ours)}


if __name__ == "__main__":
    only, no_peers = harness.take_choices("part", PARTS), {"action": "store_true", "help": "grokbit alone"}
    table = {"type": Path, "help": "a folder: write results.csv there, and the table of its README.md"}
    harness.run(main, __doc__, {"wrong": 0}, {"survived": 1.0}, kills=200, only=only, no_peers=no_peers, table=table)
