"""What a run refers to, by any spelling, and after it was moved, deleted or replaced: goes on, or is refused by name."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from pretrained import TEXT, make_folder
from program import train

from research.composition.complete import complete
from research.composition.overrides import expand_argument, parse, to_override
from research.composition.recorded import list_differences, list_moved, load_config, to_absolute
from research.data.spec import Tokens
from research.load import load_run
from research.merge.__main__ import main as merge
from research.models.hub import Hub
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.options.conf import CONF
from research.preflight import check
from research.preflight.requested import RequestedConfig

pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, at its import
HOME_LINK = "~/a-link"  # which needs no quotes
NAME = "a =,'\"[$b"  # of a folder
SHORT = ["trainer=debug", "tracker=jsonl", "trainer.device=cpu", "batch_size=4", "optim=adamw", "schedule=constant"]


def get_data(root: Path) -> list[str]:
    return ["data=text", f"data.path={root / 'texts'}", "data.pattern=*", "data.seq_len=16", "data.val_bytes=512"]


def assign(key: str, path: Path | str) -> str:
    return f"{key}={path if path == HOME_LINK else to_override(str(path))}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ternary run of a pretrained folder with its tokenizer, one that is fine-tuned from it, and the folder."""
    root = tmp_path_factory.mktemp("moved")
    (root / "texts").mkdir()
    for name in "abcd":
        (root / "texts" / name).write_text(f"{name} {TEXT[:600]}", encoding="utf-8")
    make_folder(root / NAME)
    own = [*get_data(root), *SHORT, "trainer.steps=2"]
    train(root, "model=hub", assign("model.folder", NAME), *own, assign("hydra.run.dir", root / f"{NAME} run"))
    tuned = ["finetune=inside", "finetune.rank=1", assign("finetune.base", f"{NAME} run")]
    train(root, *own, *tuned, f"hydra.run.dir={root / 'out' / 'text' / 'tuned'}")
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these that a test may change, in whose folder it is."""
    monkeypatch.chdir(root)
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy"


def find_mistakes(*words: str) -> str:
    return "\n".join(check.check_overrides([expand_argument(word) for word in words], multirun=False)[0])


def record(*words: str) -> dict[str, Any]:
    """What is recorded of such a command line beside what is typed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        requested = RequestedConfig.from_overrides(parse([expand_argument(word) for word in words])[0], {})
    cfg = {key: node for key, node in requested.cfg.items() if key in ("model", "data", "finetune", "objective")}
    return complete(cfg, requested.typed_overrides, requested.cfg["hydra"]["runtime"]["choices"], is_final=True).settings


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "absolute": str,
    "relative": os.path.relpath,
    "a link": lambda path: link(path),
    "a home": lambda path: f"~/{path.name}",
    "a link at home": lambda path: f"~/{Path(link(path)).name}",
    "a slash": lambda path: f"{path}/",
}
REFERENCES = {  # setting -> the folder that it names, the words beside it
    "finetune.base": (f"{NAME} run", ["data=text", "data.seq_len=16", "finetune=inside"]),
    "model.folder": (NAME, ["model=hub", "data=text", "data.seq_len=16"]),
    "data.tokenizer.path": (f"{NAME} run/tokenizer", ["data=text", "tokenizer=folder"]),
    "objective.teacher": (f"{NAME} run", ["data=text", "objective=distill"]),
    "objective.store": (NAME, ["data=text", "objective=distill", "objective.top_k=2", "objective.teacher=TEACHER"]),
}


def link(path: Path) -> str:
    (other := path.with_name("a-link")).symlink_to(path)
    return str(other)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("key", REFERENCES)
def test_a_folder_is_recorded_from_the_root_on(
    key: str, spelling: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, words = REFERENCES[key]
    folder = Path(shutil.copytree(root / name, tmp_path / f"{NAME} copy"))
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [assign("objective.teacher", root / f"{NAME} run") if "TEACHER" in word else word for word in words]
    line = [*words, assign(key, SPELLINGS[spelling](folder))]
    assert find_mistakes(*line) == ""
    recorded = record(*line)[key]
    assert Path(recorded).is_absolute()
    assert Path(recorded).resolve() == folder


@pytest.mark.parametrize("key", ["finetune.base", "objective.teacher"])
def test_a_run_is_named_by_its_checkpoints_too(key: str, root: Path) -> None:
    words = REFERENCES[key][1]
    paths = {name: root / f"{NAME} run" / name for name in ("", "checkpoints", "checkpoints/step-00000002")}
    settings = [record(*words, assign(key, path)) for path in paths.values()]
    digest = f"{key.partition('.')[0]}.digest"
    assert len({item[digest] for item in settings}) == 1
    assert [item[key] for item in settings] == [str(paths[name]) for name in ("", "", "checkpoints/step-00000002")]


def test_a_run_goes_on_where_its_base_was_moved(root: Path, copy: Path) -> None:
    """It is a run of hub with a tokenizer of its own; resume=auto finds what it began, and each fix names the new base."""
    moved, run = copy / "elsewhere" / NAME, copy / "out" / "text" / "tuned"
    shutil.move(copy / f"{NAME} run", moved)
    line = [*get_data(root), *SHORT, "finetune=inside", "finetune.rank=1", assign("finetune.base", moved), "trainer.steps=3"]
    refused = find_mistakes(*line, f"resume={run}", "data.seq_len=8")
    assert "data.seq_len is 8 here, was 16 there" in refused
    assert str(moved.parent) in refused
    assert f"{NAME} run" not in refused
    mistakes, more = check.check_overrides([*line, "resume.path=auto", f"out={copy / 'out'}"], multirun=False)
    assert (mistakes, more) == ([], [f"hydra.run.dir={run}"])
    train(copy, *line, f"resume={run}")
    config = load_config(run)[0]
    assert config["finetune"]["base"] == str(moved)
    assert config["data"]["tokenizer"]["path"] == str(moved / "tokenizer")
    assert load_run(str(run)).checkpoint.name == "step-00000003"
    shutil.move(moved, copy / "away")
    with pytest.raises(ValueError, match=r"finetune.base=.*: there is no such folder.*\n.*--base FOLDER"):
        load_run(str(run))
    assert load_run(str(run), base=str(copy / "away")).model
    assert merge([str(run), "--output", str(copy / "merged"), "--base", str(copy / "away")]) == 0
    assert load_run(str(copy / "merged")).model


def test_a_run_of_a_folder_that_is_gone_goes_on_by_its_own_files(root: Path, copy: Path) -> None:
    run, line = copy / f"{NAME} run", ["model=hub", *get_data(root), *SHORT, "trainer.steps=2"]
    resume = assign("resume.path", run)
    assert find_mistakes(*line, assign("model.folder", NAME), resume) == "", "where it was, named from here"
    other = make_folder(copy / "other")
    assert "model.folder is" in find_mistakes(*line, assign("model.folder", other), resume)
    for file in (run / "config.yaml", *run.glob("checkpoints/*/manifest.json")):  # as if it had been of a folder that is gone
        file.write_text(file.read_text(encoding="utf-8").replace("[$b", "[gone"), encoding="utf-8")
    assert {"model.folder", "data.tokenizer.path"} <= {*list_moved(load_config(run)[0])}
    assert find_mistakes(*line, assign("model.folder", run / "model"), resume) == ""


@pytest.mark.parametrize(("typed", "recorded"), [("texts", "texts"), ("texts", "ABSOLUTE"), ("~/texts", "ABSOLUTE")])
def test_a_path_is_compared_by_where_it_leads(
    typed: str, recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version recorded it as it was typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    recorded = str(tmp_path / "texts") if recorded == "ABSOLUTE" else recorded
    here, there = ({"model": {"folder": path}} for path in (typed, recorded))
    assert list_differences(here, there) == []
    assert to_absolute("0" * 32) == "0" * 32, "an id in MLflow is no path"


def test_layers_that_a_folder_keeps_in_full_precision_stay_so_when_its_run_is_read_back(tmp_path: Path) -> None:
    config = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    folder = make_folder(tmp_path / "folder")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = config | {"modules_to_not_convert": ["lm_head", "model.layers.0"]}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    shape, own = Tokens(300, 16), tmp_path / "own"
    first = Hub(shape, folder=str(folder), linear=BitLinear)
    first.save_config(own)
    again = Hub(shape, folder=str(own), load_weights=False, linear=BitLinear)
    assert bitlinear_layers(again).keys() == bitlinear_layers(first).keys()
    assert len(bitlinear_layers(again)) == 7
    again.load_state_dict(first.state_dict())
    tokens = torch.arange(16)[None]
    assert torch.equal(again.eval()(tokens), first.eval()(tokens))
