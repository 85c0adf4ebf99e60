"""Row 8: a line of a study's journal that has changed is named and put right, and runs are believed."""

import errno
import io
import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState
from rich.console import Console
from sweep_worker import make_worker
from sweeping import connect_journal, load_folder_study

from research.report.report import rebuild_report, report
from research.report.study import read_study
from research.run_dir import Summary
from research.sweep.progress import ProgressDisplay
from research.sweep.space import Space
from research.tracking import journal
from research.tracking.history import format_line
from research.tracking.journal import Journal
from research.tracking.study_spec import StudySpec, write_study_spec

VALUES = [0.25, 0.5, 0.75]


def reach(number: int, folder: Path) -> float:
    return VALUES[number]


def make_sweep(folder: Path) -> Path:
    """Return the journal of a small sweep that has ended, with one attribute of each kind."""
    own = make_worker(folder, reach)
    own.study.set_user_attr("grokbit", {"kind": "grid"})
    own.run_all()
    own.queue.close()
    write_study_spec(folder, StudySpec("s", "digest", 3, directions=["minimize"]))
    return folder / "study.journal"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweep"))


def read(folder: Path, content: bytes) -> list[Any]:
    """Return all that a study holds whose journal has this content."""
    folder.mkdir(exist_ok=True)
    (folder / "study.journal").write_bytes(content)
    study = load_folder_study(folder, "s")
    trials = [(t.state, t.values, t.params, t.user_attrs, t.system_attrs, t.datetime_start) for t in study.trials]
    return [study.user_attrs, study.directions, trials]


def list_changes(content: bytes) -> list[tuple[int, int]]:
    """Return each byte that can be another one, ends of lines included: its index, and the other byte."""
    digits = [
        (index, other) for index in range(len(content)) if content[index : index + 1].isdigit() for other in b"0123456789"
    ]
    flips = [(index, content[index] ^ (1 << bit)) for index in range(len(content) - 1) for bit in range(8)]
    return [(index, other) for index, other in digits + flips if other != content[index]]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_one_wrong_character_anywhere_is_put_right(sweep: Path, data: st.DataObject) -> None:
    content = sweep.read_bytes()
    index, other = data.draw(st.sampled_from(list_changes(content)))
    damaged = content[:index] + bytes([other]) + content[index + 1 :]
    assert read(sweep.parent / "damaged", damaged) == read(sweep.parent / "whole", content)


def test_an_end_of_line_that_is_damaged_is_put_right(sweep: Path) -> None:
    """Every one: there are fewer lines than records, and trials keep their numbers."""
    content, whole = sweep.read_bytes(), read(sweep.parent / "whole", sweep.read_bytes())
    for index, other in [(index, other) for index, other in list_changes(content) if content[index] == ord("\n")]:
        assert read(sweep.parent / "ends", content[:index] + bytes([other]) + content[index + 1 :]) == whole


def test_a_digit_in_a_value_does_not_make_another_best_trial(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = sweep.read_bytes().splitlines(keepends=True)
    number = next(index for index, line in enumerate(lines) if b'"values":[0.75]' in line)
    lines[number] = lines[number].replace(b"[0.75]", b"[0.05]")  # 0.25 is the best
    assert read(sweep.parent / "digit", b"".join(lines)) == read(sweep.parent / "whole", sweep.read_bytes())
    assert f"study.journal, line {number + 1} is damaged" in caplog.text


def test_a_changed_line_without_its_checksum_does_not_make_another_best_trial(
    sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Others write lines without one, but not the worker whose other lines have one."""
    lines = sweep.read_bytes().splitlines(keepends=True)
    number = next(index for index, line in enumerate(lines) if b'"values":[0.75]' in line)
    lines[number] = re.sub(rb',"crc32":"\w+"', b"", lines[number]).replace(b"[0.75]", b"[0.05]")
    _, _, trials = read(sweep.parent / "bare", b"".join(lines))
    assert [values for _, values, *_ in trials] == [[0.25], [0.5], None]
    assert f"study.journal, line {number + 1} is damaged and left out; give the sweep's command again" in caplog.text


def test_a_journal_joined_with_its_copy_is_read_once(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It had each trial twice: the same command ran what was missing of the second ones."""
    content = sweep.read_bytes()
    assert read(sweep.parent / "joined", content * 2) == read(sweep.parent / "whole", content)
    assert caplog.text.count("is a copy of an earlier one, and left out") == 3


KINDS: dict[str, bytes | None] = {
    "garbage": b"\xff\x00garbage",
    "empty": b"",
    "half": None,
    "list": b"[]",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_that_is_gone_costs_its_record_alone(sweep: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever line it is: trials keep their numbers, and what the other lines say of them."""
    lines = sweep.read_bytes().splitlines()
    whole = read(sweep.parent / "whole", sweep.read_bytes())
    for number, line in enumerate(lines):
        caplog.clear()
        bad = KINDS[kind]
        bad = line[: len(line) // 2] if bad is None else bad
        folder = sweep.parent / f"gone_{kind}_{number}"
        folder.mkdir()
        write_study_spec(folder, StudySpec("s", "digest", 3, directions=["minimize"]))
        attrs, directions, trials = read(folder, b"\n".join([*lines[:number], bad, *lines[number + 1 :], b""]))
        assert f"study.journal, line {number + 1} is damaged" in caplog.text
        operation = json.loads(line)["op_code"]
        assert directions == whole[1]
        assert attrs == (whole[0] if operation != 2 else {})
        assert len(trials) == 3
        wrong = [index for index in range(3) if trials[index] != whole[2][index]]
        assert len(wrong) <= (operation >= 4)
        states = [TrialState.COMPLETE if index not in wrong or operation != 6 else TrialState.RUNNING for index in range(3)]
        assert [state for state, *_ in trials] == states


def test_a_trial_whose_result_is_lost_is_run_again_by_the_same_command(tmp_path: Path) -> None:
    path = make_sweep(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    number = next(index for index, line in enumerate(lines) if b'"values":[0.5]' in line)
    path.write_bytes(b"".join([*lines[:number], b"?\n", *lines[number + 1 :]]))
    calls: list[int] = []

    def count(number: int, folder: Path) -> float:
        calls.append(number)
        return VALUES[number]

    own = make_worker(tmp_path, count, lease=0.5)
    own.run_all()
    own.queue.close()
    assert calls == [1]
    assert [t.values for t in load_folder_study(tmp_path, "s").trials] == [[value] for value in VALUES]


def test_a_journal_whose_study_is_lost_is_refused(tmp_path: Path) -> None:
    path = make_sweep(tmp_path)
    (tmp_path / "study.json").unlink()
    path.write_bytes(b"?" + path.read_bytes().partition(b"}")[2])
    with pytest.raises(ValueError, match=r"study\.journal, line 1 is damaged, and with it the study; give another"):
        connect_journal(tmp_path)


def test_optunas_own_journal_and_ours_are_one_format(tmp_path: Path) -> None:
    """An old journal has no checksums; Optuna and its dashboard read a new one."""
    path = tmp_path / "study.journal"
    old = optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    old.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert b"crc32" not in path.read_bytes()
    study = load_folder_study(tmp_path, "s")
    assert study.trials == old.trials
    study.add_trial(optuna.trial.create_trial(value=7.0, intermediate_values={2: 1.0, 10: float("nan"), 9: float("inf")}))
    assert path.read_bytes().splitlines()[-1].endswith(b'"}')
    assert b"crc32" in path.read_bytes()
    again = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    assert len(again.trials) == 3
    assert again.trials[2].value == load_folder_study(tmp_path, "s").trials[2].value == 7.0


def change_old(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return a journal without checksums, in which the record of the last result is changed."""
    records = [json.loads(line) for line in content.splitlines()]
    for record in records:
        record.pop("crc32", None)
    change([record for record in records if record["op_code"] == 6][-1])
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.mark.parametrize("wrong", [{"op_code": 7}, {"op_code": 60}, {"op_code": [6]}, {"trial_id": 40}, {"trial_id": "2"}])
def test_an_old_line_that_makes_no_sense_is_left_out(sweep: Path, wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without a checksum only nonsense can be seen."""
    content = change_old(sweep.read_bytes(), lambda record: record.update(wrong))
    _, _, trials = read(sweep.parent / "old", content)
    assert "is damaged and left out" in caplog.text
    assert [state for state, *_ in trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


def test_the_summary_of_a_run_counts_where_an_old_journal_says_something_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_sweep(tmp_path)
    for number, value in enumerate(VALUES):
        (tmp_path / str(number)).mkdir()
        Summary("FINISHED", monitor="val/loss", value=value).write(tmp_path / str(number))
    assert [row.note for row in read_study(tmp_path, load_folder_study(tmp_path, "s")).rows] == ["", "", ""]
    path.write_bytes(change_old(path.read_bytes(), lambda record: record.update(values=[0.05])))
    study = load_folder_study(tmp_path, "s")
    assert study.best_trial.number == 2
    rows = read_study(tmp_path, study).rows
    assert [row.values for row in rows] == [(value,) for value in VALUES]
    assert rows[2].note == "the study has 0.05, summary.json has 0.75"
    assert "trial 2: 2: the study has 0.05, summary.json has 0.75" in caplog.text
    rebuild_report(str(tmp_path), plots=False)
    assert "best_trial: 0" in (tmp_path / "optimization_results.yaml").read_text()
    output = io.StringIO()
    progress = ProgressDisplay(study, Space(), tmp_path, 3, 1, Console(file=output, width=200))
    progress.print_sweep_end(tmp_path / "results.md", report(tmp_path, study, plots=False))
    assert output.getvalue().split()[:3] == ["best", "#0", "0.25"]
    assert "#2" not in output.getvalue(), "nor anywhere else"


def test_a_summary_that_its_own_lines_contradict_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_sweep(tmp_path)
    (tmp_path / "2").mkdir()
    Summary("FINISHED", monitor="val/loss", value=0.05, best={"val/loss": 0.05, "step": 3}).write(tmp_path / "2")
    (tmp_path / "2" / "metrics.jsonl").write_text(format_line({"step": 3, "val/loss": 0.75}))
    rows = read_study(tmp_path, load_folder_study(tmp_path, "s")).rows
    assert [row.values for row in rows] == [(value,) for value in VALUES]
    assert "summary.json has 0.05, but val/loss at step 3 is 0.75 or 0.05" in caplog.text


def test_a_finished_run_of_a_failed_trial_is_noted(tmp_path: Path) -> None:
    def fail(number: int, folder: Path) -> float:
        raise ValueError("lost")

    own = make_worker(tmp_path, fail, "x=1")
    own.run_all()
    own.queue.close()
    (tmp_path / "0").mkdir()
    Summary("FINISHED", monitor="val/loss", value=0.5).write(tmp_path / "0")
    (row,) = read_study(tmp_path, load_folder_study(tmp_path, "s")).rows
    assert (row.state, row.values, row.note) == ("FAIL", (), "the study has FAIL, summary.json has 0.5")


def test_a_full_disk_leaves_no_part_of_a_record(tmp_path: Path) -> None:
    """The limit on a file's size stands for the end of the disk: the system takes a part of what is written."""
    own = Journal(tmp_path / "study.journal")
    own.append_logs([{"op_code": 2, "worker_id": "", "study_id": 0, "user_attr": {"a": 1}}])
    whole = own.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"No space left|too large") as error:
            own.append_logs([{"op_code": 2, "worker_id": "", "study_id": 0, "user_attr": {"b": "c" * 100}}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert own.path.read_bytes() == whole
    own.append_logs([{"op_code": 2, "worker_id": "", "study_id": 0, "user_attr": {"d": 2}}])
    assert [record["user_attr"] for record in own.read_logs(0)] == [{"a": 1}, {"d": 2}]


def test_what_a_killed_process_has_left_is_cut_off_before_the_next_record(tmp_path: Path) -> None:
    """By those who have the journal open already."""
    own = Journal(tmp_path / "study.journal")
    for attr in ({"a": 1}, {"b": 2}):
        own.append_logs([{"op_code": 2, "worker_id": "", "study_id": 0, "user_attr": attr}])
        with own.path.open("ab") as file:
            file.write(b'{"op_code":2,"wor')
    assert [record["user_attr"] for record in own.read_logs(0)] == [{"a": 1}, {"b": 2}]
    assert [record["user_attr"] for record in own.read_logs(1)] == [{"b": 2}]


def test_each_operation_is_known() -> None:
    """Optuna's operations and what their records hold, of all that JournalStorage writes."""
    from optuna.storages.journal._storage import JournalOperation

    assert {int(operation) for operation in JournalOperation} == set(journal.KEYS)
    names = ("CREATE_STUDY", "SET_STUDY_USER_ATTR", "CREATE_TRIAL", "SET_TRIAL_STATE_VALUES")
    assert [int(JournalOperation[name]) for name in names] == [0, 2, 4, 6]
    fields = {"SET_TRIAL_PARAM": "param_name", "SET_TRIAL_INTERMEDIATE_VALUE": "step", "SET_STUDY_SYSTEM_ATTR": "system_attr"}
    for name, field in fields.items():
        assert field in journal.KEYS[int(JournalOperation[name])]
