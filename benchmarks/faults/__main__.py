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
from systems import PEERS, Grokbit, System, ready

BOUNDS = {"survived": 1.0, "wrong": 0}
Peers = list[type[System]]


def in_a_save(kills: int, peers: Peers) -> Iterator[Row]:
    yield saves.kills(Grokbit, kills)
    for peer in peers:
        yield saves.kills(peer, max(1, kills // 8))


def of_files(kills: int, peers: Peers) -> Iterator[Row]:
    yield saves.another_manifest(Grokbit)
    for system in (Grokbit, *peers):
        yield from saves.damaged(system, max(5, kills // 8))


def of_room(kills: int, peers: Peers) -> Iterator[Row]:
    for system in (Grokbit, *peers):
        yield saves.full_disk(system)


def of_runs(kills: int, peers: Peers) -> Iterator[Row]:
    times = max(1, kills // 20)
    for phase in runs.KILLS:
        yield runs.in_phase(phase, signal.SIGKILL, times)
    for phase in runs.ASKS:
        yield runs.in_phase(phase, signal.SIGTERM, times)
    yield runs.one_folder()
    yield from (runs.no_room(flag) for flag in (False, True))
    yield from (runs.store_gone(flag) for flag in (False, True))


PARTS = {"saves": in_a_save, "files": of_files, "room": of_room, "runs": of_runs}


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
    ready()
    peers = [] if args.no_peers else PEERS
    for missing in [peer for peer in peers if not peer.installed()]:
        print(f"{missing.name} is not installed: pip install {missing.needs}")
    found = []
    print(f"{'fault':<34}{'system':<24}{'times':>6}{'survived':>9}{'error':>6}{'lost':>5}{'wrong':>6}  remark")
    there = [peer for peer in peers if peer.installed()]
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
