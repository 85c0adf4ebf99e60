"""Every preset runs (in debug size) and opens with its command, its minutes and the metric to expect."""

import json
import re
from pathlib import Path

import pytest
from pretrained import make_folder
from program import ROOT, train

PRESETS = sorted(path for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
SMALL = ["trainer=debug", "batch_size=4", "model.dim=32", "trainer.device=cpu", "tracker=jsonl"]


NEEDS = {  # the run that a preset starts from: its setting, and the model of the run
    "distill": ("objective.teacher", "transformer"),
    "qat": ("resume", "transformer"),
    "lora_inside": ("finetune.base", "bitnet"),
    "gains": ("finetune.base", "bitnet"),
}
NUM_NAMES = {"text_classification": 8, "tabular": 2}  # of classes, where the data name them


def list_more(preset: str, tmp_path: Path) -> list[str]:
    """Return the words that a preset needs beside its name: those of a pretrained folder in place of a width."""
    if preset != "finetune_hub":
        return SMALL
    pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
    folder = make_folder(tmp_path / "folder")
    few = [f"data.path={ROOT / 'conf'}", "data.pattern=*.yaml"]  # in place of all of Python's own sources
    return [*(word for word in SMALL if "dim" not in word), f"model.folder={folder}", "data.seq_len=24", *few]


def test_there_are_presets() -> None:
    assert PRESETS


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What some presets start from: a language model of each kind."""
    root = tmp_path_factory.mktemp("first")
    for model in ("transformer", "bitnet"):
        train(root, "data=text", f"model={model}", *SMALL, f"hydra.run.dir={root / model}")
    return {model: root / model for model in ("transformer", "bitnet")}


@pytest.mark.filterwarnings("ignore")  # transformers' own, at its import
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_runs(preset: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    setting, model = NEEDS.get(preset.stem, ("", ""))
    needed = [f"{setting}={request.getfixturevalue('first_runs')[model]}"] if setting else []
    train(tmp_path, f"experiment={preset.stem}", *needed, *list_more(preset.stem, tmp_path))
    (summary,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("summary.json"))
    assert (summary["status"], summary["steps"]) == ("FINISHED", 3)
    assert len(summary["classes"]) == NUM_NAMES.get(preset.stem, 0)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_opens_with_command_time_and_metric(preset: Path) -> None:
    opening = [line for line in preset.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
    assert f"python train.py experiment={preset.stem}" in opening[0]
    assert re.search(r"\d+ (s|minutes?) on two cores", " ".join(opening))
    assert re.search(r"val/\w+ [\d.]+", " ".join(opening))
