"""A user's own yaml or module that is broken: told with file and line where it is chosen, and nowhere else."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from research.options.conf import set_folders
from research.options.help import build_help_text
from research.preflight.program import prepare

MLP = "_target_: research.models.mlp.MLP\ndim: 8\ndepth: 1\n"

# option -> content of its yaml, and the two lines that follow `error:` and what was typed
BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "model/bracket": (MLP + "include: [a\n", ["bracket.yaml:5: did not find expected ',' or ']'", "close the bracket"]),
    "model/colon": ("# a net\n_target_: mine: Net\n", ["colon.yaml:2: mapping values are not allowed", "quote a value"]),
    "model/tab": ("_target_: x.Net\n\tdim: 8\n", ["tab.yaml:2: found a tab character", "indent with spaces"]),
    "model/twice": (MLP + "dim: 16\n", ["twice.yaml:4: found duplicate key dim", "leave one of them out"]),
    "model/two": (MLP + "---\n" + MLP, ["two.yaml:4: but found another document", "leave out the second ---"]),
    "model/list": ("- a\n- b\n", ["list.yaml:1: it holds a list", "write keys and values"]),
    "model/words": ("hello\n", ["words.yaml:1: it holds a text", "write keys and values"]),
    "model/empty": ("", ["empty.yaml names no _target_ below 'model'", "as _target_: mine.Net"]),
    "model/dull": ("dim: 8\n", ["dull.yaml names no _target_ below 'model'", "as _target_: mine.Net"]),
    "model/above": ("# @package _global_\n" + MLP, ["above.yaml names no _target_ below 'model'", "no # @package line"]),
    "model/header": ("# @package _globl_\n" + MLP, ["header.yaml:1: # @package _globl_ is no package", "# @package _global_"]),
    "model/late": ("# a net\n# @package model\n" + MLP, ["late.yaml:2: Hydra reads # @package model as the first line alone"]),
    "data/late": (
        "# a note\n# @package _global_\ndefaults:\n  - override /loss: classification\n",
        ["late.yaml:2: Hydra reads # @package _global_ as the first line alone", "move it to line 1"],
    ),
    "model/layers": (MLP, ["research.models.mlp.MLP needs linear", "layers.yaml: - override /linear@_global_.linear: full"]),
    "model/narrow": (MLP.replace("dim", "linear"), ["MLP needs dim", "write dim: VALUE below _target_ in "]),
    "model/nan": (MLP + "linear: 0\n", ["Hydra reads nan as a number", "did you mean: model="]),
    "model/mark": ("\ufeff" + MLP, ["mark.yaml:1: it begins with a byte order mark", "save it as UTF-8 without one"]),
    "model/latin": (b"# \xe4\n" + MLP.encode(), ["latin.yaml:1: byte 0xe4 is not UTF-8", "save it as UTF-8"]),
    "model/wide": (MLP.encode("utf-16"), ["wide.yaml:1: byte 0xff is not UTF-8", "save it as UTF-8"]),
    "model/missing": ("defaults:\n  - nowhere\n  - _self_\n" + MLP, ["missing.yaml:2: group 'model' has no option 'nowhere'"]),
    "model/itself": ("defaults:\n  - itself\n  - _self_\n" + MLP, ["itself.yaml:2: its defaults lead back to model=itself"]),
    "model/circle": (MLP + "a: &a [*a]\n", ["circle.yaml:4: a holds itself", "write the value out"]),
    "model/number": (MLP + "3: 4\n", ["number.yaml:4: the key 3 is no text"]),
    "model/reference": (MLP.replace("8", "${nowhere}"), ["there is no key 'nowhere', which ${nowhere} refers to"]),
    "model/mistyped": (
        MLP.replace("MLP", "MPL") + "linear: 0\n",
        ["research.models.mlp has no 'MPL'", "did you mean", "research.models.mlp.MLP"],
    ),
    "model/parameter": (MLP.replace("dim", "dmi"), ["research.models.mlp.MLP has no parameter dmi", "did you mean: model.dim"]),
    "model/nomodule": ("_target_: no_such_module_here.Net\n", ["there is no package 'no_such_module_here'"]),
    "model/syntax": ("_target_: broken_syntax.Net\n", ["broken_syntax.py:2: "]),
    "model/needs": ("_target_: broken_import.Net\n", ["broken_import.Net needs no_such_package, not installed here"]),
    "experiment/plain": ("lr: 3\n", ["plain.yaml:1: the first line of a preset must be # @package _global_"]),
    "experiment/chosen": (
        "# @package _global_\ndefaults:\n  - model: bitmlp\n",
        ["chosen.yaml:3: conf/config.yaml chooses model already", "write - override /model: bitmlp"],
    ),
    "experiment/left": (
        "# @package _global_\ndefaults:\n  - override /model: bitmlp\n  - override /data: digits\nmodel:\n  heads: 2\n",
        ["left.yaml:6: model.heads: research.models.mlp.MLP has no parameter heads", "give ~model.heads"],
    ),
    "experiment/apart": (
        "# @package _global_\ndefaults:\n  - override tokenizer: bpe\n",
        ["apart.yaml:3: override tokenizer is of a group below", "write - override /tokenizer: bpe"],
    ),
    "experiment/option": (
        "# @package _global_\ndefaults:\n  - override /data: texts\n",
        ["option.yaml:3: group 'data' has no option 'texts'; options: ", "write - override /data: text"],
    ),
    "experiment/group": (
        "# @package _global_\ndefaults:\n  - override /modle: mlp\n",
        ["group.yaml:3: there is no group 'modle'", "write - override /model: mlp"],
    ),
    "experiment/base": (
        "# @package _global_\ndefaults:\n  - txt\n",
        ["base.yaml:3: group 'experiment' has no", "write - text"],
    ),
    "experiment/through": ("# @package _global_\ndefaults:\n  - option\n", ["option.yaml:3: group 'data' has no option"]),
    "experiment/unread": (
        "# @package _global_\nmodle:\n  dim: 8\n",
        ["unread.yaml:2: modle: no component reads it", "write model"],
    ),
    "experiment/inner": (
        "# @package _global_\ntrainer:\n  compile: true\n  log_evry: 5\n",
        ["inner.yaml:4: trainer.log_evry", "write trainer.log_every"],
    ),
    "experiment/value": ("# @package _global_\nsteps: 1e3x\n", ["value.yaml:2: trainer.steps takes a whole number"]),
    "data/local": ("_target_: research.data.digits.digits\n", ["local.yaml gives no name, monitor", "# @package _global_"]),
    "optim/rate": (
        "# @package _global_\noptim:\n  _target_: research.optim.param_groups.from_base\n  lr: ${lr}\n",
        ["rate.yaml gives no lr", "begin it as conf/optim/adamw.yaml"],
    ),
}
OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (lambda path: path.mkdir(), "folder.yaml is a folder"),
    "link": (lambda path: path.symlink_to("nowhere.yaml"), "link.yaml is a link to nothing"),
    "short": (lambda path: path.with_suffix(".yml").write_text(MLP), "Hydra reads .yaml alone: rename "),
}


@pytest.fixture(scope="module", autouse=True)
def forget_folders() -> Iterator[None]:
    """Leave the options as they are without these folders."""
    yield
    set_folders([])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all broken options at once."""
    folder = tmp_path_factory.mktemp("conf")
    for option, (content, _) in BROKEN.items():
        file = folder / f"{option}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, (make, _) in OTHERS.items():
        make(folder / "model" / f"{name}.yaml")
    (folder / "broken_syntax.py").write_text("\nclass Net(:\n")
    (folder / "broken_import.py").write_text("import no_such_package\n\nclass Net:\n    def __init__(self, shape): ...\n")
    return folder


def answer(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        prepare(["train.py", "--config-dir", str(folder), *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("option", BROKEN)
def test_a_broken_option_is_told_where_it_is_chosen(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    group, name = option.split("/")
    text = answer(folder, capsys, f"{group}={name}", *{"model": ["data=digits"], "data": ["model=mlp"]}.get(group, []))
    for words in BROKEN[option][1]:
        assert words in text
    assert text.count("error: ") == 1, text
    assert len(text.splitlines()) <= 4


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_no_option_is_told(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert OTHERS[name][1] in answer(folder, capsys, f"model={name}", "data=digits")


def test_broken_options_break_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config-dir", str(folder)]
    assert prepare(["train.py", *flags, "model=mlp", "data=digits"]) == ["train.py", *flags, "model=mlp", "data=digits"]
    for words, fix in ((["model=bitnt"], "did you mean: model=bitnet"), (["trainer.step=5"], "trainer.steps=5")):
        assert fix in answer(folder, capsys, *words)
    text = answer(folder, capsys, "data=digits")
    assert "give model=bitmlp" in text
    assert not any(name.rpartition("/")[2] in text for name in BROKEN)
    set_folders([folder])
    assert "bracket" in build_help_text()


def test_what_composes_passes(tmp_path: Path) -> None:
    for name, content in {"crlf": MLP.replace("\n", "\r\n"), "comment": f"# ein Netz für Ziffern\n{MLP}"}.items():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / f"{name}.yaml").write_bytes(
            f"{content}linear:\n  _target_: torch.nn.Linear\n  _partial_: true\n".encode()
        )
        prepare(["train.py", "--config-dir", str(tmp_path), f"model={name}", "data=digits"])
    shutil.rmtree(tmp_path / "model")
