"""The run or the sweep that a command line names; what is neither is answered before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT

from research.tracking import ui
from research.tracking.find import check_report, check_run

COMMANDS = ("report.__main__", "generate.__main__", "export.__main__", "tracking.ui")


def make_folders(root: Path) -> None:
    for name, files in {
        "run": ["config.yaml"],
        "checkpoint": ["manifest.json"],
        "sweep/3": ["config.yaml"],
        "sweep": ["study.journal", "optimization_results.yaml"],
        "new": ["study.journal"],
        "stored": ["study.json"],
        "population": ["population.json"],
        "plots": ["a.png"],
    }.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            (root / name / file).touch()
    (root / "sweep" / "optimization_results.yaml").write_text("name: optuna\nbest_trial: 3\nfolder: '3'\n")


@pytest.mark.parametrize(
    ("name", "run", "report", "page"),
    [
        ("run", "", "it is no sweep's folder: it has no study.journal", ""),
        ("checkpoint", "", "it is no sweep's folder", "it is no sweep's folder"),
        ("sweep", "it is the folder of a sweep; give one of its runs, its best: {root}/sweep/3", "", ""),
        ("new", "it is the folder of a sweep; give one of its runs, as {root}/new/0", "", ""),
        (
            "stored",
            "it is the folder of a sweep",
            "its study is not in the folder, which has no study.journal; give --storage",
            "its study",
        ),
        ("population", "it is the folder of a sweep", "", ""),
        (
            "",
            "{root} has no config.yaml that can be read; give a run, as the newest one here, {root}/run",
            "it is no sweep's",
            "it is no",
        ),
        ("plots", "{root}/plots has no config.yaml that can be read; give a run folder", "it is no sweep's folder", "it is no"),
        (
            "nowhere",
            "there is no such folder; give a run folder",
            "there is no such folder; give a sweep's",
            "there is no such",
        ),
        ("x" * 300, "there is no such folder", "there is no such folder", "there is no such folder"),
    ],
)
def test_what_cannot_be_read_is_told(name: str, run: str, report: str, page: str, tmp_path: Path) -> None:
    make_folders(tmp_path)
    source = str(tmp_path / name)

    def get_error(kind: str) -> str:
        try:
            check_run(source) if kind == "run" else check_report(source, kind == "page", "")
        except ValueError as error:
            return str(error).partition(f"={source}: ")[2]
        return ""

    for kind, expected in (("run", run), ("report", report), ("page", page)):
        error = get_error(kind)
        assert error.startswith(text := expected.format(root=tmp_path)), kind
        assert bool(error) == bool(text), kind
    check_run("0" * 32)  # an id in MLflow is looked up later
    check_report(str(tmp_path / "stored"), False, "sqlite:///x.db")


@pytest.mark.parametrize("port", ["0", "-1", "99999"])
def test_a_port_that_there_cannot_be_is_not_taken(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ui", "--port", port])
    with pytest.raises(SystemExit):
        ui.main()
    assert capsys.readouterr().err == f"error: --port {port}: give a number from 1 to 65535\n"


def test_the_answer_imports_nothing_heavy() -> None:
    code = f"import sys, {', '.join(f'research.{name}' for name in COMMANDS)}\n"
    code += "print([name for name in ('torch', 'hydra', 'optuna', 'mlflow', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
