"""This repository under its own checker: it reaches the level defense, and its scores only rise."""

import json
import os
import subprocess
import sys

from program import ROOT

LEAST = {1: 99, 2: 97, 3: 97, 4: 100, 5: 90, 6: 99, 7: 99, 8: 98, 9: 99, 10: 99}  # percent; raise one with the score
MAX_CPU_SECONDS = 20
BOUNDS = ("MAX_", "once", "one call", "that of")  # a constant of the code, a reason why there is one, or another entry's


def test_it_reaches_the_level_defense_and_its_scores_only_rise() -> None:
    before = os.times()
    command = [sys.executable, "-m", "research.compliance", ".", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after, report = os.times(), json.loads(ended.stdout)
    assert [finding for finding in report["findings"] if finding["critical"]] == []
    assert (ended.returncode, report["level"]) == (0, "defense")
    assert report["score"] >= 95
    assert report["floor"] >= 90
    scores = {result["rule"]: result["score"] for result in report["rules"]}
    assert {rule: score for rule, score in scores.items() if score < LEAST[rule]} == {}, "--rule N names the units"
    assert {rule: score for rule, score in scores.items() if score >= LEAST[rule] + 2} == {}, "they rose: raise LEAST"
    bounds = [deviation["bound"] for deviation in report["deviations"]]
    assert len(bounds) <= 20
    assert [bound for bound in bounds if not any(word in bound for word in BOUNDS)] == []
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds <= MAX_CPU_SECONDS
