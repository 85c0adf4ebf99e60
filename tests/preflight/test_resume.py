"""resume=: what it finds, which folder the run writes to, and which settings must not change."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from research.composition.overrides import to_override
from research.options.conf import CONF
from research.preflight.check import check_overrides, find_mistakes

RUN_ID = "0123456789abcdef" * 2


def quote_path(path: Path) -> str:
    return to_override(str(path))


def write_config(folder: Path, *overrides: str) -> None:
    """Write the config.yaml of a run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder below `tmp_path`, with two checkpoints and an MLflow id; its name needs quotes."""
    folder = tmp_path / "modular" / "a 'b'"
    for step in (3, 6):
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    write_config(folder, f"out={tmp_path}")
    (folder / "mlflow_run_id").write_text(RUN_ID)
    return folder


def test_a_resumed_run_has_the_same_architecture(tmp_path: Path) -> None:
    assert "holds no checkpoint" in "\n".join(find_mistakes([f"resume={tmp_path}"], False))
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    write_config(tmp_path)
    for changes in ([], ["model.dropout=0.1", "lr=1e-4", "optim.base.betas=[0.9,0.9]"],
                    ["data.p=13", "optim=adamw", "resume.weights_only=true"]):  # fmt: skip
        assert find_mistakes([f"resume={tmp_path}", *changes], False) == []
    for changes, words in (
        (["model.dim=64"], "model.dim is 64 here, was 128 there"),
        (["model.dim=64", "resume.weights_only=true"], "model.dim is 64 here, was 128 there"),
        (["optim=adamw"], "optim._target_"),
        (["data.p=13"], "data.p is 13 here, was 47 there"),
    ):
        assert words in "\n".join(find_mistakes([f"resume={tmp_path}", *changes], False))


def test_data_that_were_moved_are_named_where_they_are(tmp_path: Path) -> None:
    """Others, or none, are another run's: what lies where it was recorded was not moved."""
    run, texts, moved = tmp_path / "run", tmp_path / "texts", tmp_path / "moved"
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    for folder in (texts, moved):
        folder.mkdir()
    write_config(run, "data=text", f"data.path={texts}")
    words = ["data=text", f"resume={run}"]
    assert f'data.path is "{moved}" here, was "{texts}" there' in "\n".join(
        find_mistakes([*words, f"data.path={moved}"], False)
    )
    texts.rmdir()
    assert find_mistakes([*words, f"data.path={moved}"], False) == []
    assert "data.path is null here" in "\n".join(find_mistakes(words, False))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "data=digits model=mlp +schedule.end=9 out=o steps=9"),
        ("steps=12 lr=0.5 model.dim=64", "data=digits model=mlp +schedule.end=9 out=o steps=12 lr=0.5"),
        ("epochs=2 model.dim=64", "data=digits model=mlp +schedule.end=9 out=o epochs=2"),
        ("data=digits model=mlp optim=adam seed=3", "data=digits model=mlp +schedule.end=9 out=o steps=9 seed=3"),
    ],
)
def test_a_run_is_resumed_by_its_own_line(tmp_path: Path, words: str, line: str) -> None:
    """Whatever parts it lacks: one mistake, with the line that goes on."""
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    own = ["data=digits", "model=mlp", "+schedule.end=9", "out=o", "resume.path=auto", "steps=9"]
    write_config(tmp_path, "schedule=cosine", *own)
    (tmp_path / "overrides.txt").write_text("\n".join(own) + "\n")
    (mistake,) = find_mistakes([f"resume={tmp_path}", *words.split()], False)
    assert mistake.splitlines()[2] == f"  to go on with it: python train.py {line} resume={tmp_path}"
    assert ("weights_only=true for a new run" in mistake) == ("adam" in words)


def test_resume_finds_its_folder(tmp_path: Path, run: Path) -> None:
    folder = f"hydra.run.dir={quote_path(run)}"
    by_path = f"resume.path={quote_path(run)}"
    assert check_overrides(["resume.path=auto", f"out={tmp_path}"], False) == ([], [folder])
    assert check_overrides(["resume.path=auto", f"out={tmp_path}", "lr=1e-4"], False) == ([], [])
    assert check_overrides([by_path, "lr=1e-4"], False) == ([], [folder])
    assert check_overrides([by_path, "resume.weights_only=true"], False) == ([], [])


def test_resume_finds_the_folder_of_a_run_id(tmp_path: Path, run: Path) -> None:
    by_id, by_path = [f"resume.path={RUN_ID}", f"out={tmp_path}"], f"resume.path={quote_path(run)}"
    assert check_overrides(by_id, False) == ([], [by_path, f"hydra.run.dir={quote_path(run)}"])
    assert check_overrides([*by_id, f"hydra.run.dir={tmp_path / 'own'}"], False) == ([], [by_path])
    assert check_overrides([*by_id, "lr=1e-3,1e-4"], True) == ([], [by_path])
    (run.parent / "other").mkdir()
    (run.parent / "other" / "mlflow_run_id").write_bytes(b"\xff\xfe")  # damaged
    assert check_overrides(by_id, False) == ([], [by_path, f"hydra.run.dir={quote_path(run)}"])


def test_an_older_checkpoint_branches_off(run: Path) -> None:
    folder = f"hydra.run.dir={quote_path(run)}"
    newest, older = (quote_path(run / "checkpoints" / f"step-{step:08d}") for step in (6, 3))
    assert check_overrides([f"resume.path={newest}"], False) == ([], [folder])
    assert check_overrides([f"resume.path={older}"], False) == ([], [])
    (mistake,) = find_mistakes([f"resume.path={older}", folder], False)
    assert "later checkpoints than step-00000003" in mistake
    assert "leave out hydra.run.dir" in mistake
    (run / "checkpoints" / "step-00000006-good").mkdir()  # a user's copy, which is none of the run's checkpoints
    assert check_overrides([f"resume.path={newest}"], False) == ([], [folder])


def test_resume_auto_prefers_a_run_with_a_checkpoint(tmp_path: Path, run: Path) -> None:
    folder = f"hydra.run.dir={quote_path(run)}"
    newer = tmp_path / "modular" / "newer"
    newer.mkdir()
    for content in ("", "lr: [1, ", (run / "config.yaml").read_text()):  # damaged twice, then without a checkpoint
        (newer / "config.yaml").write_text(content)
        assert check_overrides(["resume.path=auto", f"out={tmp_path}"], False) == ([], [folder])


def test_resume_auto_without_a_run_starts_afresh(tmp_path: Path) -> None:
    assert check_overrides(["resume.path=auto", f"out={tmp_path}"], False) == ([], [])


def test_resume_auto_resumes_one_run(tmp_path: Path) -> None:
    (mistake,) = find_mistakes(["resume=auto", "resume.weights_only=true", f"out={tmp_path}"], False)
    assert "resume.weights_only=true" in mistake
    assert "give resume=FOLDER" in mistake
    (mistake,) = find_mistakes(["resume=auto", "lr=1e-3,1e-4", f"out={tmp_path}"], True)
    assert "-m starts several" in mistake
    (mistake,) = find_mistakes([f"resume={'01234567' * 4},{'89abcdef' * 4}", f"out={tmp_path}"], True)
    assert "one run in MLflow" in mistake


def test_weights_come_from_somewhere() -> None:
    (mistake,) = find_mistakes(["resume.weights_only=true"], False)
    assert "resume.weights_only=true" in mistake
    assert "give resume=" in mistake
