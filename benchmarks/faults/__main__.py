"""A campaign of faults: what is left of a training after kill -9, damage, a full disk, signals, a store that is gone.

    python benchmarks/faults [--kills 200] [--only saves,files,room,runs] [--no-peers] [--table experiments/faults]

A fault has been survived where training goes on, by itself, from the newest checkpoint that was complete and is not
damaged. Peers save the same numbers at each step in their own way. With `--kills 200` each of them is killed 25 times, a bit
is flipped in 25 places of each file, and a run of ours is ended 10 times in each of its phases.
"""

import argparse
import json
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import runs
import saves
import table
from saves import Row
from systems import PEERS, Grokbit, System, prepare_process

BOUNDS = {"survived": 1.0, "wrong": 0}
Peers = list[type[System]]


def run_save_faults(kills: int, peers: Peers) -> Iterator[Row]:
    yield saves.kill_in_save(Grokbit, kills)
    for peer in peers:
        yield saves.kill_in_save(peer, max(1, kills // 8))


def run_file_faults(kills: int, peers: Peers) -> Iterator[Row]:
    yield saves.swap_manifest(Grokbit)
    for system in (Grokbit, *peers):
        yield from saves.damage_files(system, max(5, kills // 8))


def run_disk_faults(kills: int, peers: Peers) -> Iterator[Row]:
    for system in (Grokbit, *peers):
        yield saves.save_to_full_disk(system)


def run_process_faults(kills: int, peers: Peers) -> Iterator[Row]:
    times = max(1, kills // 20)
    for phase in runs.KILL_PHASES:
        yield runs.interrupt_run(phase, signal.SIGKILL, times)
    for phase in runs.TERM_PHASES:
        yield runs.interrupt_run(phase, signal.SIGTERM, times)
    yield runs.run_twice()
    yield from (runs.run_without_space(flag) for flag in (False, True))
    yield from (runs.run_without_store(flag) for flag in (False, True))


PARTS = {"saves": run_save_faults, "files": run_file_faults, "room": run_disk_faults, "runs": run_process_faults}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill in a save")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--no-peers", action="store_true", help="grokbit alone")
    parser.add_argument("--table", type=Path, help="a folder: write results.csv there, and the table of its README.md")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only: there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    random.seed(0)
    prepare_process()
    peers = [] if args.no_peers else PEERS
    for missing in [peer for peer in peers if not peer.is_installed()]:
        print(f"{missing.name} is not installed: pip install {missing.package}")
    found = []
    print(f"{'fault':<34}{'system':<24}{'times':>6}{'survived':>9}{'error':>6}{'lost':>5}{'wrong':>6}  remark")
    there = [peer for peer in peers if peer.is_installed()]
    for row in (row for part in parts for row in PARTS[part](args.kills, there)):
        found.append(row)
        counts = f"{row.times:>6}{row.survived:>9}{row.error:>6}{row.lost:>5}{row.wrong:>6}"
        print(f"{row.fault:<34}{row.system:<24}{counts}  {row.remark}".rstrip(), flush=True)
    if args.table:
        table.write(args.table, found)
    ours = [row for row in found if row.system == Grokbit.name]
    share = sum(row.survived for row in ours) / max(1, sum(row.times for row in ours))
    print(json.dumps({"survived": share, "wrong": sum(row.wrong for row in ours), "bounds": BOUNDS}))


if __name__ == "__main__":
    main()
