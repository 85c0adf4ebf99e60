"""A small form of the campaign of faults: make faults runs all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT


@pytest.mark.slow
def test_a_small_campaign_is_survived(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--kills", "12", "--only", "saves,files,room", "--no-peers"]
    done = subprocess.run([*command, "--table", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["survived"], record["wrong"]) == (1.0, 0), done.stdout
    rows = [line.split(",") for line in (tmp_path / "results.csv").read_text().splitlines()]
    assert rows[0][:4] == ["fault", "system", "times", "survived"]
    assert [int(row[2]) for row in rows if row[0] == "kill -9 in a save"] == [12]
    if "not tried" in done.stdout:
        print(next(line for line in done.stdout.splitlines() if "not tried" in line))
