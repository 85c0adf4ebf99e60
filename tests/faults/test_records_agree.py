"""Row 8: records agree: what a damaged metrics.jsonl or summary.json has lost is named and comes back."""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from fitting import fit, read_metrics
from mlflow.tracking import MlflowClient
from optuna.study import Study
from program import create_empty_store
from reporting import make_study, make_trial

from research.pbt.plan import read_population
from research.report.report import write_files
from research.report.study import load_study, read_study
from research.run import get_finished_value
from research.run_dir import RunConfig, Summary, parse_json, read_json, read_summary, write_record
from research.tracking import history
from research.tracking.jsonl import FINISHED
from research.tracking.mlflow import MLflow
from research.tracking.optuna_storage import get_storage
from research.tracking.sink import make_record
from research.tracking.study_spec import StudySpec, write_study_spec
from research.training.state import Callback, State

LAST, SAVED, KILLED = 12, 8, 10
SETTINGS: dict[str, Any] = {"steps": LAST, "log_every": 1, "eval_every": 4, "every": 4, "keep_last": 3}


class Kill(Callback):
    """End the run as kill -9 would: nothing is saved."""

    def on_step(self, state: State) -> None:
        if state.progress.step == KILLED:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, and one that was killed."""
    root = tmp_path_factory.mktemp("runs")
    fit(root / "whole", **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        fit(root / "killed", Kill(), **SETTINGS)
    assert [line["step"] for line in read_metrics(root / "killed")] == list(range(1, KILLED + 1))
    return root


def edit_line(number: int, edit: Callable[[str], str]) -> Callable[[Path], object]:
    """A damage of one line, counted from 1."""

    def damage(path: Path) -> None:
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[: number - 1], edit(lines[number - 1]), *lines[number:]]))

    return damage


def flip_digit(key: str) -> Callable[[str], str]:
    """The number of a key with another first digit."""

    def edit(line: str) -> str:
        start = line.index(f'"{key}": ') + len(key) + 4
        return line[:start] + str((int(line[start]) + 1) % 10) + line[start + 1 :]

    return edit


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {  # and what names it
    "deleted": (Path.unlink, "the line of step 1 is missing"),
    "empty": (lambda path: path.write_text(""), "the line of step 1 is missing"),
    "cut": (lambda path: path.write_text(path.read_text()[:700]), "it is incomplete"),
    "digit": (edit_line(3, flip_digit("train/loss")), "line 3 is damaged: it does not have the crc32 that it names"),
    "step": (edit_line(5, flip_digit("step")), "line 5 is damaged: it does not have the crc32 that it names"),
    "checksum": (edit_line(2, lambda line: line.replace('"crc32": "', '"crc32": "x')), "line 2 is damaged"),
    "line gone": (edit_line(6, lambda line: ""), "the line of step 6 is missing"),
    "line of another run": (
        edit_line(4, lambda line: history.format_line({"step": 4, "val/acc": 1.0})),
        "the line of step 4 is not what was written",
    ),
    "no JSON": (edit_line(7, lambda line: line.replace("{", "\0")), "line 7 is damaged"),
    "deep JSON": (edit_line(7, lambda line: "[" * 100_000 + "\n"), "line 7 is damaged: it is nested too deep"),
    "a number": (edit_line(1, lambda line: "3\n"), "line 1 is damaged: it is not a JSON object"),
    "lines in another order": (lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1])), ""),
    "none": (lambda path: None, ""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_that_is_resumed_has_its_whole_history(
    runs: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, (damage, words) = tmp_path / "run", DAMAGE[kind]
    shutil.copytree(runs / "killed", folder)
    damage(folder / history.METRICS_FILE)
    fit(folder, resume=folder, **SETTINGS)
    assert read_metrics(folder) == read_metrics(runs / "whole")
    assert read_seconds(folder)[:SAVED] == read_seconds(runs / "killed")[:SAVED], "the very lines, and not the steps again"
    warnings = [record.getMessage() for record in caplog.records if history.METRICS_FILE in record.getMessage()]
    assert bool(warnings) == bool(words)
    if words:
        assert f"{folder / history.METRICS_FILE}: " in warnings[0]
        assert words in warnings[0]


def read_seconds(folder: Path) -> list[float]:
    return [json.loads(line)["seconds"] for line in (folder / history.METRICS_FILE).read_text().splitlines()]


def test_what_no_checkpoint_holds_is_counted(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run: its checkpoints hold the newest lines alone."""
    monkeypatch.setattr(history, "MAX_BACKUP", 600)
    folder, path = tmp_path / "run", tmp_path / "run" / history.METRICS_FILE
    with pytest.raises(KeyboardInterrupt):
        fit(folder, Kill(), **SETTINGS)
    path.unlink()
    fit(folder, resume=folder, **SETTINGS)
    steps = [line["step"] for line in read_metrics(folder)]
    assert 1 < steps[0] < SAVED
    assert steps == list(range(steps[0], LAST + 1))
    assert f"{steps[0] - 1} lines before step {steps[0]} are lost" in caplog.text


def test_a_run_that_branches_off_begins_its_own_history(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path / "branch", resume=runs / "killed" / "checkpoints" / "step-00000004", **SETTINGS)
    assert [line["step"] for line in read_metrics(tmp_path / "branch")] == list(range(5, LAST + 1))
    assert history.METRICS_FILE not in caplog.text


def test_lines_without_a_checksum_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of 0.2 and before. Only what no JSON is, or has no step, is damaged in them."""
    path = tmp_path / history.METRICS_FILE
    path.write_text(
        '{"step": 1, "val/loss": 2.5}\n{"step": 2, "val\n{"val/loss": 1}\n{"step": 3, "val/loss": null}\n{"step": 4'
    )
    assert list(history.read_records(path)) == [{"step": 1, "val/loss": 2.5}, {"step": 3, "val/loss": None}]
    assert "line 2 is damaged" in caplog.text
    assert "line 3 is damaged: it has no step; line 5 is damaged: it is incomplete" in caplog.text


def test_other_programs_read_each_line(runs: Path) -> None:
    for line in (runs / "whole" / history.METRICS_FILE).read_text().splitlines():
        record = json.loads(line)
        assert record["train/loss"] > 0
        assert [key for key, value in record.items() if isinstance(value, str)] == ["crc32"]


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    """Either the text is no JSON, or its checksum is wrong, or the content is the same still."""
    content = {"step": 12, "val/loss": 0.1234567890123, "val/acc": None}
    text = history.format_line(content).encode()
    for index in range(len(text)):
        for bit in range(8):
            broken = bytearray(text)
            broken[index] ^= 1 << bit
            try:
                record = parse_json(broken.decode())
            except ValueError:
                continue
            assert {key: record[key] for key in content} == content, broken


def summarize(folder: Path) -> tuple[RunConfig, Summary]:
    """The summary of a finished run, and its configuration."""
    run = RunConfig("name", "study", folder, {}, [], {}, resumed=True)
    line = read_metrics(folder)[-1]
    best = {"val/loss": line["val/loss"], "step": line["step"]}
    summary = Summary(FINISHED, config=run.digest, monitor="val/loss", value=best["val/loss"], best=best, steps=LAST)
    summary.write(folder)
    return run, summary


def strip_checksums(path: Path) -> None:
    path.write_text(re.sub(r', "crc32": "\w+"', "", path.read_text()))


def test_a_line_that_has_lost_its_checksum_is_damaged(runs: Path, tmp_path: Path) -> None:
    """Lines of an older version, which has none, stand before ours."""
    path = Path(shutil.copy(runs / "whole" / history.METRICS_FILE, tmp_path))
    whole = path.read_text().splitlines(keepends=True)
    strip_checksums(path)
    bare = path.read_text().splitlines(keepends=True)
    assert history.read_lines(path) == (dict(enumerate(bare, start=1)), [])
    path.write_text("".join([*bare[:2], *whole[2:]]))
    assert history.read_lines(path)[1] == []
    path.write_text("".join([*whole[:2], bare[2].replace("0.", "9.", 1), *whole[3:]]))
    lines, damage = history.read_lines(path)
    assert [*lines] == [1, 2, *range(4, LAST + 1)]
    assert damage == ["line 3 is damaged: it has no crc32, as those before it have"]


def test_a_finished_run_is_believed_where_its_records_agree(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "whole", folder)
    run, summary = summarize(folder)
    assert get_finished_value(run) == summary.value
    path = folder / "summary.json"
    text = path.read_text()
    path.write_text(text.replace(f'"value": {summary.value}', '"value": 0.001'))
    assert get_finished_value(run) is None, "the checkpoint decides"
    assert f"{path} is damaged" in caplog.text
    content = json.loads(text)
    del content["crc32"]
    path.write_text(json.dumps(content))
    assert get_finished_value(run) is None, "the same version writes both"
    assert f"summary.json has no crc32, and the line of step {LAST} has one" in caplog.text
    strip_checksums(metrics := folder / history.METRICS_FILE)
    assert get_finished_value(run) == summary.value, "an older version wrote them"
    path.write_text(json.dumps(content | {"value": 0.001}))
    assert get_finished_value(run) is None
    assert f"val/loss at step {LAST} is" in caplog.text
    best = {"val/loss": 0.001, "step": LAST + 5}
    for text in (metrics.read_text(), ""):
        metrics.write_text(text)
        caplog.clear()
        path.write_text(json.dumps(content | {"value": 0.001, "best": best}))
        assert get_finished_value(run) is None, "a step that no line has"
        assert "summary.json has no crc32, and no line confirms it" in caplog.text
    path.write_text("[" * 100_000)
    assert read_summary(folder) is None
    assert read_json(folder / "none.json") == {}


def test_mlflow_that_has_another_number_is_named(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both numbers are there then, and the one of metrics.jsonl is the newest."""
    shutil.copy(create_empty_store(), tmp_path / "mlflow.db")
    uri, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "run"
    shutil.copytree(runs / "killed", folder)
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("study"), tags={"folder": str(folder)}).info.run_id
    client.log_metric(run_id, "train/loss", 77.0, step=3)
    (folder / "mlflow_run_id").write_text(run_id)
    tracker, lines = MLflow(uri), read_metrics(folder)
    tracker.start(RunConfig("name", "study", folder, {}, [], {}, resumed=True))
    for line in lines[:SAVED]:
        tracker._send(make_record({"step": line["step"], "train/loss": line["train/loss"]}, time.time()))
    tracker.sink.first_step = SAVED
    with caplog.at_level(logging.WARNING):
        tracker.finish(FINISHED, {})
    history_there = sorted(client.get_metric_history(run_id, "train/loss"), key=lambda point: (point.step, point.timestamp))
    assert [point.value for point in history_there if point.step == 3] == [77.0, lines[2]["train/loss"]]
    assert len(history_there) == SAVED + 1
    assert "train/loss at step 3 is 77.0 there" in caplog.text


def test_a_record_with_numbers_that_json_lacks_is_written_and_read(tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", {"a": float("nan"), "b": {"c": float("inf"), "d": 1e-300}})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": {"c": None, "d": 1e-300}}


def write_sweep(folder: Path) -> Study:
    """Leave the folder of a sweep of two finished runs, and return its study."""
    study = make_study(keys=["model.depth"])
    for number in (0, 1):
        (folder / str(number)).mkdir(parents=True)
        Summary("FINISHED", monitor="val/acc", value=0.5, metrics={"val/acc": 0.5}, steps=3).write(folder / str(number))
        (folder / str(number) / "overrides.txt").write_text("model.depth=2\n")
        (folder / str(number) / "mlflow_run_id").write_text("0" * 32)
        study.add_trial(make_trial(number, {"model.depth": 2}, value=0.5))
    write_study_spec(folder, StudySpec("sweep_x", total=2))
    return study


BIG, CUT = 10**400, b"\xff\x00"
DAMAGED_TRIALS: dict[str, list[Any]] = {  # by file or attribute: what stands there in place of what should
    "0/summary.json": [
        *({"value": value} for value in ("x", [1], BIG, True)),
        *({"metrics": value} for value in ([1], "x", {"a": "x"}, {"val/acc": BIG})),
        *({"best": value} for value in ("x", {"step": "x"})),
        *({"steps": value} for value in ("x", 1e308, BIG, True)),
        *({"shape": [1]}, {"monitor": 5}, {"status": 7}, {"wall_s": "x"}, {"mlflow_run_id": 5}, {"baseline": [1]}),
    ],
    "study.json": [
        *({"total": value} for value in ("x", BIG, 1.5)),
        *({"fixed": "abc"}, {"fixed": [5]}, {"space": [1]}, {"space": {"seed": 5}}, {"study": 5}, {"directions": "x"}),
        *({"metrics": "a"}, {"metrics": [5]}, {"repeats": [1]}, {"max_failure_rate": "x"}, {"reason": 5}, {"kind": 5}),
    ],
    "grokbit": [5, [1], "x", {"total": "x"}, {"fixed": [5]}, {"space": 5}],
    "0/overrides.txt": [CUT, None],
    "0/mlflow_run_id": [CUT, None],
    "folder": [5, "\0", ["x"]],
    "repeats": [5, "x", {"a": 1}],
}


@pytest.mark.parametrize(
    ("source", "damage"), [(key, item) for key, items in DAMAGED_TRIALS.items() for item in items], ids=str
)
def test_a_report_names_what_is_damaged_of_one_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, damage: Any
) -> None:
    """It ended without a report, by an error that named no file. The other trial is as it was."""
    study, file = write_sweep(tmp_path), tmp_path / source
    if source == "grokbit":
        study.set_user_attr(source, damage)
    elif not file.exists():
        trial = make_trial(2, {"model.depth": 2}, value=0.5)
        trial.set_user_attr(source, damage)
        study.add_trial(trial)
    elif damage is None:
        file.unlink()
        file.mkdir()
    else:
        content = parse_json(file.read_text()) if isinstance(damage, dict) else {}
        file.write_bytes(damage if isinstance(damage, bytes) else json.dumps(content | damage).encode())
    sweep = read_study(tmp_path, study)
    write_files(sweep, tmp_path, plots=False)
    assert sweep.rows[1].values == (0.5,)
    assert sweep.rows[1].steps == 3
    assert [row.params for row in sweep.rows] == [{"model.depth": "2"}] * len(sweep.rows)
    name = source if file.exists() or source == "grokbit" else "trial 2"
    assert source == "folder" or [message for message in caplog.messages if name in message and "damaged" in message]


@pytest.mark.parametrize("names", [(), ("other",)])
def test_a_study_that_the_storage_has_not_is_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    """It said: 'Record does not exist.'"""
    write_sweep(tmp_path)
    storage = f"journal://{tmp_path / 'study.journal'}"
    for name in names:
        optuna.create_study(study_name=name, storage=get_storage(storage))
    with pytest.raises(ValueError, match="it has no study sweep_x" + ", only: other" * bool(names)):
        load_study(tmp_path, storage)


def test_a_damaged_member_of_a_population_is_named(tmp_path: Path) -> None:
    write_record(tmp_path / "population.json", {"version": 2, "members": [{"odd": 1}]})
    with pytest.raises(ValueError, match=r"population\.json is damaged: "):
        read_population(tmp_path)
