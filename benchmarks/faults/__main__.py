"""A campaign of faults: what is left of a training after kill -9, a power cut, damage, a full disk, signals, moved things.

    python -m benchmarks.faults [--kills 200] [--only saves,files,disks] [--no-peers] [--table experiments/faults]

A system survives a fault if training resumes by itself from the newest checkpoint that was complete and is not damaged.
Peers save the same numbers at each step in their own way. With `--kills 200` each peer is killed 25 times, a bit is flipped
in 25 positions of each file, and one of our runs is ended 10 times in each of its phases.

With --table each cell is stored as soon as it was tried: after a kill the same command goes on with the next one. The rows
that were not tried keep what results.csv has of them.
"""

import importlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.faults import folders, runs, saves, sweeps
from benchmarks.faults.results import RESULTS, Cell, merge, read_rows, try_cells, write_table
from benchmarks.faults.systems import PEERS, Grokbit, System
from research.contracts import contract

Systems = list[type[System]]
PARTS = ("saves", "files", "disks", "runs", "folders", "sweeps")


def list_cells(part: str, kills: int, systems: Systems) -> Iterator[Cell]:
    """Yield the cells of a part, in the order of the table."""
    some, few = max(1, kills // 20), max(5, kills // 8)
    if part == "saves":
        yield from (Cell(saves.kill_in_save, (kind, kills if kind is Grokbit else max(1, kills // 8))) for kind in systems)
        yield from (Cell(saves.kill_in_save, (kind, some, signal.SIGHUP)) for kind in systems)
        for factor in (1, 2):
            yield from (Cell(saves.resume_in_epoch, (kind, factor)) for kind in systems if kind.num_samples)
    elif part == "files":
        yield Cell(saves.swap_manifest)
        yield from (Cell(saves.damage_files, (kind, few)) for kind in systems)
        yield from (Cell(saves.damage_files, (kind, max(2, few // 3), 1)) for kind in systems)
    elif part == "disks":
        yield from (Cell(saves.cut_power_in_save, (kind, some)) for kind in systems)
        yield from (Cell(saves.save_to_full_disk, (kind,)) for kind in systems)
    elif part == "runs":
        two, three = ("steps", "evaluations"), ("steps", "evaluations", "saves")
        for signum, phases in ((signal.SIGKILL, two), (signal.SIGTERM, runs.PHASES), (signal.SIGHUP, three)):
            yield from (Cell(runs.interrupt_run, (phase, signum, some)) for phase in phases)
        yield from (Cell(runs.cut_power_in_run, (max(2, some // 2),)), Cell(runs.run_without_terminal), Cell(runs.run_twice))
        yield from (Cell(runs.run_without_space, (read_only,)) for read_only in (False, True))
        yield from (Cell(runs.run_without_store, (for_good,)) for for_good in (False, True))
    elif part == "folders":
        yield from (Cell(folders.resume_other_settings), Cell(folders.move_things), Cell(folders.copy_checkpoint_out))
        yield from (Cell(folders.damage_record, record) for record in folders.RECORDS)
    else:
        yield from map(Cell, sweeps.ALL)


@contract
def main(kills: int, only: list[str], no_peers: bool, table: Path | None) -> harness.Results:
    random.seed(0)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: a handler is not inherited by programs, as ignoring is
        signal.signal(signal.SIGHUP, lambda *_: None)
    peers = [] if no_peers else PEERS
    systems: Systems = [Grokbit, *(peer for peer in peers if harness.has_peer(peer.name, peer.package, *peer.package.split()))]
    # The children are forks of this process: it has one compute thread and has done the slow imports.
    torch.set_num_threads(1)
    for module in filter(None, (system.module for system in systems)):
        importlib.import_module(module)
    rows = try_cells((cell for part in only for cell in list_cells(part, kills, systems)), table)
    if table:
        complete = merge(read_rows(table / RESULTS), rows, only == list(PARTS))
        write_table(table, complete, [Grokbit.name, *(peer.name for peer in PEERS)])
    ours = [row for row in rows if row.system == Grokbit.name]
    share = sum(row.survived for row in ours) / max(1, sum(row.times for row in ours))
    return {"survived": share, "wrong": sum(row.wrong for row in ours)}


if __name__ == "__main__":
    only, no_peers = harness.take_choices("part", PARTS), {"action": "store_true", "help": "grokbit alone"}
    table = {"type": Path, "help": "a folder: write results.csv there, and the table of its README.md"}
    harness.run(main, __doc__, {"wrong": 0}, {"survived": 1.0}, kills=200, only=only, no_peers=no_peers, table=table)
