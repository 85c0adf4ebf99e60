"""best.yaml as a preset: it composes to what the trial had."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from program import ROOT

from research.report import preset
from research.report.results import Row, Sweep
from research.tracking.study_spec import parse_study_spec

STUDY = """# @package _global_
defaults:
  - override /model: mlp
  - override /data: digits
  - override /hydra/sweeper/sampler: tpe
optim:
  weight_decay: 1e-3
hydra:
  sweeper:
    params:
      lr: interval(1e-4,1e-1)
"""


@pytest.mark.parametrize(
    "line",
    [
        "model=mlp optim=adamw lr=1e-5",
        "experiment=text model=mlp data=modular trainer.clip_norm=null",
        "experiment=grokking steps=7 callbacks=[default,gradients] callbacks.time_limit.seconds=2.5",
        "+extra='1e-3' optim={weight_decay:0.5} optim.alpha=0.5 name='a b, c'",
        "sweep=small steps=7 optim=muon",
        "loss=classification ++optim.base.eps=1e-9 optim.base.betas=[0.5,0.9] +note=null",
    ],
)
def test_best_yaml_composes_to_what_the_trial_had(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset, "CONF", tmp_path / "conf")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    parts = OverridesParser.create().parse_overrides([*_split_overrides(line)])
    lines = [str(part.input_line) for part in parts]
    (tmp_path / "conf" / "sweep").mkdir(exist_ok=True)
    (tmp_path / "conf" / "sweep" / "small.yaml").write_text(STUDY)
    spec = {"directions": ["minimize"], "fixed": sorted(lines[:-1]), "space": {}}
    row = Row(3, "COMPLETE", (0.1,), dict([lines[-1].split("=", 1)]))
    sweep = Sweep("sweep_x", parse_study_spec(spec), ["val/loss"], "", "", [row])
    (tmp_path / "conf" / "experiment" / "best.yaml").write_text(preset.build_preset(sweep, row))
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        assert compose("config", ["experiment=best"]) == compose("config", lines)
        params = compose("config", ["experiment=best"], return_hydra_config=True).hydra.sweeper.get("params")
        assert not params, "it does not search again"


def _split_overrides(line: str) -> Iterator[str]:
    """At the spaces between overrides."""
    words = line.split(" ")
    while words:
        word = words.pop(0)
        while words and "=" not in words[0]:
            word += " " + words.pop(0)
        yield word


def test_best_yaml_says_what_it_cannot_hold() -> None:
    spec = {
        "directions": ["minimize"],
        "fixed": ["~callbacks.curve", "optim.betas.0=0.5", "out=x", "resume.path=y", "tracker=none"],
    }
    row = Row(0, "COMPLETE", (0.1,), {"lr": "0.1"})
    text = preset.build_preset(Sweep("s", parse_study_spec(spec), ["val/loss"], "", "", [row]), row)
    assert "a preset cannot have them: ~callbacks.curve optim.betas.0=0.5" in text
    assert yaml.safe_load(text) == {"lr": 0.1}
