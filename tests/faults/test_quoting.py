"""Row 20: a text that is written for Hydra and the shell is read again as it was, and ~ is the home folder everywhere."""

import ast
import json
import os
import shlex
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from program import ROOT, TINY, make_environment, run

from research.composition.overrides import expand_argument, to_argument, to_override
from research.preflight.check import find_mistakes
from research.preflight.program import prepare
from research.rules import check_folder
from research.run_dir import expand_path
from research.sweep.plan import resolve_home
from research.tracking.storage import resolve_uri

# Every character of Unicode, and runs of those that Hydra, OmegaConf and shells give a meaning.
TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.text("ab'\"\\${}:,=[]() ~/.#%@+*?!;&|<>`é\n\t", max_size=10),
    st.sampled_from(["null", "true", "1e3", "nan", "~", "a,b", "range(3)", "${lr}", "\\${lr}", "\\\\${", "'", "\\'", "\\"]),
)


def read_argument(word: str) -> str:
    """Return the text that a program receives from a word of a command line."""
    (argument,) = shlex.split(word)
    override = OverridesParser.create().parse_override(argument)
    assert override.key_or_group == "resume"
    assert not override.is_sweep_override()
    return str(OmegaConf.create({"x": override.value()}).x)


@given(TEXTS)
def test_what_is_written_is_read(text: str) -> None:
    assume(text != "???")  # no value, for OmegaConf
    assert read_argument(to_argument("resume", text)) == text


UNREADABLE = ["a(b", "a)b", "[a", "{a", "a]", "Läufe", "a,b", "a=b(", "it's", 'a"b', "漢字", "a;b", "a&b"]


@given(TEXTS | st.sampled_from(UNREADABLE))
def test_the_advice_of_the_parser_is_read(text: str) -> None:
    """A value that Hydra cannot read is answered with a spelling that it can."""
    lines = [line for mistake in find_mistakes([f"out={text}"], multirun=False)[:1] for line in mistake.splitlines()]
    advice = [line.partition("text: ")[2] for line in lines if "text: " in line]
    assert advice or text not in UNREADABLE
    for line in advice:
        (argument,) = shlex.split(line)
        assert OverridesParser.create().parse_override(argument).value() == text


def test_overrides_for_the_shell_are_written_in_one_function() -> None:
    """One of the preflight, and one of the data, which are below it.

    Only `shlex.join` of whole words is used elsewhere; kernels/build.py reads CC.
    """
    users = {path.name for path in (ROOT / "research").rglob("*.py") if "shlex.quote" in path.read_text()}
    assert users == {"overrides.py", "sources.py"}


def test_home_folders_are_expanded_in_one_function() -> None:
    for path in (ROOT / "research").rglob("*.py"):
        calls = [node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        assert "expanduser" not in calls or path.name in ("run_dir.py", "rules.py"), path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "Zuhause ü"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Zuhause ü" / "texts").mkdir(parents=True)
    return tmp_path / "Zuhause ü"


@pytest.mark.parametrize("typed", ["out=~/runs", 'out="~/runs"', "out='~/runs'"])
@pytest.mark.parametrize("flags", [[], ["-m", "seed=0,1"]])
def test_out_in_the_home_folder(typed: str, flags: list[str], home: Path) -> None:
    words = prepare(["train.py", typed, "name=x", *flags])
    assert words.count("-m") == len(flags[:1])
    (out,) = [word for word in words if word.startswith("out=")]
    assert OverridesParser.create().parse_override(out).value() == f"{home}/runs"


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_folders_of_hydra_in_the_home_folder(key: str, home: Path) -> None:
    words = prepare(["train.py", f"{key}='~/runs/x'", "seed=1"])
    assert words == ["train.py", "seed=1", f"{key}='{home}/runs/x'"]


@pytest.mark.parametrize("key", ["data.path", "resume", "model.folder"])
def test_a_path_in_the_home_folder_is_one_that_exists(key: str, home: Path) -> None:
    options = {"data.path": ["data=text"], "model.folder": ["model=hub"], "resume": []}[key]
    for typed in (f"{key}=~/nothing", f"{key}='~/nothing'"):
        assert f"{home}/nothing" in "".join(find_mistakes([*options, typed], multirun=False))
        there = find_mistakes([*options, typed.replace("nothing", "texts")], multirun=False)
        assert f"there is no file or folder {home}/texts" not in "".join(there)
    assert not list(Path().glob("*~*"))


def test_a_home_folder_of_nobody_is_refused(home: Path) -> None:
    (mistake,) = find_mistakes(["out='~nobody_of_this_name/x'"], multirun=False)
    assert mistake.splitlines()[1:] == [
        "  out=~nobody_of_this_name/x: there is no such user",
        """  give "out='./~nobody_of_this_name/x'" for a folder of this name""",
    ]
    assert "there is no file or folder" in find_mistakes(["data=text", "data.path='~nobody_of_this_name/x'"], multirun=False)[0]
    assert expand_path("~nobody_of_this_name") == Path("~nobody_of_this_name")


def test_a_reference_cannot_be_part_of_a_folder() -> None:
    """Hydra resolves a folder more than once: what is no reference at first becomes one."""
    (mistake,) = find_mistakes(["out='a\\${b}'"], multirun=False)
    assert "Hydra reads ${ as a reference" in mistake


def test_only_a_leading_tilde_alone_is_a_home_folder(home: Path) -> None:
    assert expand_argument("out=a~") == "out=a~"
    assert expand_argument("~callbacks.checkpoint") == "~callbacks.checkpoint"
    assert expand_argument("out=~/a,~/b") == "out=~/a,~/b"  # a sweep: Hydra says what is wrong
    assert expand_argument("+resume=~/a") == f"+resume.path='{home}/a'"
    assert resolve_uri("sqlite:///~/a.db") == f"sqlite:///{home}/a.db"
    assert resolve_uri("sqlite:////tmp/~/a.db") == "sqlite:////tmp/~/a.db"
    assert resolve_home("~/sweeps", OmegaConf.create()) == home / "sweeps"


@pytest.mark.parametrize("control", ["\n", "\r", "\x1b", "\x85", "\u2028", "\udcff"])
def test_a_folder_is_one_line_of_text(control: str) -> None:
    (mistake,) = find_mistakes([f"out='a{control}b'"], multirun=False)
    assert "one line of text, without control characters" in mistake
    assert "control character" in str(check_folder(f"a{control}b"))


def test_the_printed_line_goes_on(tmp_path: Path) -> None:
    """With a folder that every layer would read otherwise: the shell, Hydra's grammar, OmegaConf."""

    def start(*words: str) -> str:
        done = run([str(ROOT / "train.py"), *words], tmp_path, make_environment(tmp_path))
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = tmp_path / "Läufe" / 'o\'a "b" $HOME a,b=[c]'
    argv = ["tracker=jsonl", "name=run", *TINY]
    out_word = shlex.split(to_argument("out", str(out)))[0]
    done = start(*argv, out_word)
    (folder,) = (out / "run").iterdir()
    (line,) = [line for line in done.splitlines() if line.startswith("resume with")]
    words = shlex.split(line.partition("train.py ")[2])
    start(*words)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
    assert os.listdir(out / "run") == [folder.name]
    done = start(*argv, out_word, "trainer.steps=6", "resume=auto")
    assert "finished already" in done


KEYS = st.one_of(
    TEXTS.filter(lambda text: "\0" not in text),
    st.integers(),
    st.booleans(),
    st.none(),
    st.sampled_from(["a:b", "1", "a b", "a,b"]),
)


@given(st.dictionaries(KEYS, st.integers(), max_size=3))
def test_a_mapping_is_read_as_it_was_or_refused(mapping: dict[object, int]) -> None:
    """`{'a:b': 1}` was read as `{'a': 'b:1'}`."""
    text = ""
    with suppress(ValueError):
        text = to_override(mapping)
    if text:
        read = OverridesParser.create().parse_override(f"x={text}").value()
        assert isinstance(read, dict)
        assert [(type(key), key, read[key]) for key in read] == [(type(key), key, mapping[key]) for key in mapping]
    else:
        assert any(isinstance(key, str) for key in mapping)


@pytest.mark.parametrize(
    ("key", "text"), [("a:b", r"{a\:b:1}"), ("a b", "{a b:1}"), (1, "{1:1}"), (None, "{null:1}"), (True, "{True:1}")]
)
def test_a_key_is_written_with_no_more_than_it_needs(key: object, text: str) -> None:
    assert to_override({key: 1}) == text


@pytest.mark.parametrize("key", ["1", "true", "null", "", "ü", "'", "1e3"])
def test_a_key_that_hydra_cannot_have_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="Hydra has no such key; give a word of letters"):
        to_override({key: 1})
