"""The campaign of faults: it goes on by cell after a kill, and a small form of it. make faults runs all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT

from benchmarks.faults.results import RESULTS, UNFINISHED, Cell, Row, merge, read_rows, try_cells, write_table


def test_a_campaign_goes_on_with_the_cell_in_which_it_was_killed(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(name: str, dies: bool) -> list[Row]:
        calls.append(name)
        if dies and calls.count(name) == 1:
            raise KeyboardInterrupt
        return [Row(f"{name}{number}", times=2, survived=2, remark="so, so") for number in range(2)]

    cells = [Cell(work, ("a", False)), Cell(work, ("b", True)), Cell(work, ("c", False))]
    with pytest.raises(KeyboardInterrupt):
        try_cells(cells, tmp_path)
    assert [row.fault for row in read_rows(tmp_path / UNFINISHED)] == ["a0", "a1"]
    rows = try_cells(cells, tmp_path)
    assert calls == ["a", "b", "b", "c"]
    assert [row.fault for row in rows] == ["a0", "a1", "b0", "b1", "c0", "c1"]
    assert rows == read_rows(tmp_path / UNFINISHED)
    write_table(tmp_path, rows, ["grokbit"])
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]
    (row,) = [row for row in read_rows(tmp_path / RESULTS) if row.fault == "b1"]
    assert (row.times, row.remark, row.cell) == (2, "so, so", "work(b, True)")


def test_rows_that_were_not_tried_again_stay() -> None:
    old = [Row("a"), Row("a", "peer", 3), Row("gone"), Row("b")]
    new = [Row("new"), Row("a", times=5)]
    described = [[(row.fault, row.system, row.times) for row in merge(old, new, complete)] for complete in (False, True)]
    ours = [("a", "grokbit", 5), ("a", "peer", 3)]
    assert described[0] == [*ours, ("gone", "grokbit", 0), ("b", "grokbit", 0), ("new", "grokbit", 0)]
    assert described[1] == [("new", "grokbit", 0), *ours]


@pytest.mark.slow
def test_a_small_campaign_is_survived(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--kills", "12", "--only", "saves,files,disks", "--no-peers"]
    done = subprocess.run([*command, "--table", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["survived"], record["wrong"]) == (1.0, 0), done.stdout
    rows = [line.split(",") for line in (tmp_path / "results.csv").read_text().splitlines()]
    assert rows[0][:4] == ["fault", "system", "times", "survived"]
    assert [int(row[2]) for row in rows if row[0] == "kill -9 in a save"] == [12]
    if "not tried" in done.stdout:
        print(next(line for line in done.stdout.splitlines() if "not tried" in line))
