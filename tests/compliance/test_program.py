"""The checker as a user starts it: exit codes, formats, and trees that are no clean text."""

import json
import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from time import monotonic

import pytest
from compliance.trees import write_tree
from program import ROOT

from research.compliance.rules import RULES, Inputs, run_rules
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.tree import read_tree

CLEAN = {
    "pkg/__init__.py": "",
    "pkg/sums.py": '''
        """Sums."""


        def add(first: int, second: int) -> int:
            """Return a sum."""
            if first < 0 or second < 0:
                raise ValueError("first and second are at least 0")
            if first > 100:
                raise ValueError("first is at most 100")
            return first + second
    ''',
}
DYNAMIC = {"a.py": "def load(text: str) -> object:\n    return eval(text)\n"}


def run(*arguments: str | Path, folder: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the checker in a folder and return what it printed."""
    command = [sys.executable, *options, "-m", "research.compliance", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def read_json(*arguments: str | Path, folder: Path) -> dict[str, list[dict[str, object]]]:
    """Return the JSON of a run, which ended with 0 or 1."""
    result = run(*arguments, "--json", folder=folder)
    assert result.returncode in (0, 1), result.stderr
    content: dict[str, list[dict[str, object]]] = json.loads(result.stdout)
    return content


def find(content: dict[str, list[dict[str, object]]], rule: int) -> list[dict[str, object]]:
    """Return the findings of a rule."""
    return [finding for finding in content["findings"] if finding["rule"] == rule]


def test_a_clean_tree_reaches_the_level(tmp_path: Path) -> None:
    result = run(".", "--rule", "1", "2", "6", "8", folder=write_tree(tmp_path, CLEAN))
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "score 100.0 (floor 100.0): level defense reached"
    assert "note: score and level are of 4 of 10 rules" in result.stderr.splitlines()
    assert "note" not in result.stdout


def test_a_tree_with_eval_reaches_no_level(tmp_path: Path) -> None:
    result = run(".", "--level", "basic", folder=write_tree(tmp_path, CLEAN | DYNAMIC))
    assert result.returncode == 1
    assert "  a.py:2 a.load" in result.stdout
    assert "level basic not reached" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: PATH=nowhere: there is no such file or folder"),
        (["empty"], "error: PATH=empty: there is no Python file; give a folder with some, or one of them"),
        (["words.txt"], "error: PATH=words.txt: there is no Python file; give a folder with some, or one of them"),
        (["tests"], "error: PATH=tests: all Python files are tests, configuration or generated; no file counts"),
        ([], "error: the following arguments are required: PATH"),
        (["pkg", "--rule", "11"], "error: argument --rule: invalid choice: 11"),
        (["pkg", "--level", "best"], "error: argument --level: invalid choice: 'best'"),
        (["pkg", "--findings", "-1"], "error: argument --findings: "),
        (["pkg", "--register", "no.toml"], "error: --register no.toml: there is no such file"),
        (["pkg", "--mypy-report", "no.txt"], "error: [Errno 2] No such file or directory: 'no.txt'"),
    ],
    ids=[
        "no such path",
        "an empty folder",
        "a file of words",
        "tests alone",
        "no path",
        "rule 11",
        "an unknown level",
        "less than no finding",
        "no such register",
        "no such report",
    ],
)
def test_a_wrong_command_ends_with_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_tree(tmp_path, CLEAN | {"words.txt": "words", "tests/test_a.py": "x = 1"})
    (tmp_path / "empty").mkdir()
    result = run(*arguments, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_the_json_of_the_program_adds_up(tmp_path: Path) -> None:
    content = json.loads(run(".", "--json", folder=write_tree(tmp_path, CLEAN | DYNAMIC)).stdout)
    assert [rule["rule"] for rule in content["rules"]] == list(range(1, 11))
    assert content["score"] == pytest.approx(sum(rule["score"] for rule in content["rules"]) / 10)
    assert {"score", "rules", "findings", "deviations"} <= {*content}


@pytest.mark.parametrize("name", ["text", "json", "sarif", "github"])
def test_each_format_names_the_finding_and_ends_alike(tmp_path: Path, name: str) -> None:
    result = run("src", "--format", name, folder=write_tree(tmp_path, {"src/a.py": DYNAMIC["a.py"]}))
    assert result.returncode == 1
    assert "a.load" in result.stdout
    assert "src/a.py" in result.stdout or name == "json"  # whose paths are relative to the tree


def test_a_syntax_error_is_a_critical_finding(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN | {"broken.py": "x = 1\ndef f(:\n"})
    (finding,) = find(read_json(".", folder=tmp_path), 0)
    assert (finding["path"], finding["line"], finding["critical"]) == ("broken.py", 2, True)
    assert run(".", "--level", "basic", folder=tmp_path).returncode == 1


def test_a_tree_of_broken_files_has_no_score(tmp_path: Path) -> None:
    result = run(".", folder=write_tree(tmp_path, {"broken.py": "def f(:\n"}))
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("score 0.0 (floor 0.0): level defense not reached")


def test_a_single_file_is_a_tree(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN | DYNAMIC)
    assert run("pkg/sums.py", "--rule", "1", "8", folder=tmp_path).returncode == 0
    result = run("a.py", folder=tmp_path)
    assert result.returncode == 1
    assert "a.py:2 a.load" in result.stdout


@pytest.mark.parametrize(
    ("content", "is_readable"),
    [
        (b"# coding: latin-1\nx = '\xe9'\n", True),
        (b"\xef\xbb\xbfx = 1\n", True),
        (b"x = '\\d'\n", True),
        (b"x = '\xe9'\n", False),
        (b"# coding: hex\nx = 1\n", False),
        (b"# coding: no-such\nx = 1\n", False),
        (b"x = '\x00'\n", False),
        (b"x = " + b"-" * 100_000 + b"1\n", False),
        (b"x = " + b"1+" * 100_000 + b"1\n", False),
    ],
    ids=[
        "latin-1 with a coding line",
        "a byte order mark",
        "an unknown escape",
        "latin-1 without a coding line",
        "a coding that is no text",
        "an unknown coding",
        "a null byte",
        "signs that overflow the parser",
        "a sum that overflows the tree",
    ],
)
def test_bytes_that_are_no_utf_8(tmp_path: Path, content: bytes, is_readable: bool) -> None:
    write_tree(tmp_path, CLEAN)
    (tmp_path / "bytes.py").write_bytes(content)
    findings = find(read_json(".", folder=tmp_path), 0)
    assert [finding["path"] for finding in findings] == ([] if is_readable else ["bytes.py"])
    assert all(len(str(finding["message"])) <= 200 for finding in findings)


def test_links_that_loop_end(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN)
    (tmp_path / "pkg" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.py").symlink_to(tmp_path / "self.py")
    (tmp_path / ".#lock.py").symlink_to("nobody@nowhere")  # an editor's mark
    content = read_json(".", folder=tmp_path)
    assert [finding["path"] for finding in find(content, 0)] == ["self.py"]
    assert "Too many levels of symbolic links" in str(find(content, 0)[0]["message"])


def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN)
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.py")).write_text("x = (")
    except OSError:
        pytest.skip("names are UTF-8 here")
    for name in ("text", "json", "sarif", "github"):
        result = run(".", "--format", name, folder=tmp_path)
        assert (result.returncode, "Traceback" in result.stderr) == (1, False)


def test_a_thousand_files_take_seconds(tmp_path: Path) -> None:
    text = "def f{0}(x: int) -> int:\n    if x < 0:\n        raise ValueError('x')\n    return x + {0}\n\n\n"
    write_tree(tmp_path, {f"pkg/m{n}.py": "".join(text.format(i) for i in range(5)) for n in range(1000)})
    before = os.times()
    content = read_json(".", folder=tmp_path)
    assert os.times().children_user - before.children_user < 20  # about 3, whatever else the machine does
    assert content["rules"][0]["units"] == 5000


def write_register(folder: Path, unit: str, day: date) -> None:
    """Write a register with one entry for rule 8."""
    (folder / "compliance.toml").write_text(
        f'version = 1\n[[deviation]]\nrule = 8\nunit = "{unit}"\nreason = "It reads a table of ours."\n'
        f'owner = "data"\nbound = "one literal"\nexpires = {day}\n'
    )


def write_dynamic(folder: Path) -> str:
    """Write a tree with one eval, large enough for one deviation; return the unit of the finding."""
    write_tree(folder, CLEAN | DYNAMIC | {f"pkg/m{n}.py": CLEAN["pkg/sums.py"] for n in range(30)})
    (finding,) = find(read_json(".", "--rule", "8", folder=folder), 8)
    return str(finding["unit"])


def test_a_deviation_is_applied_and_shown(tmp_path: Path) -> None:
    unit = write_dynamic(tmp_path)
    write_register(tmp_path, unit, date.today() + timedelta(days=5))
    result = run(".", "--rule", "1", "8", folder=tmp_path)
    assert result.returncode == 0, result.stdout
    assert f"rule 8 {unit}: It reads a table of ours." in result.stdout
    assert f"note: the deviation of rule 8 for {unit} expires on" in result.stderr
    content = read_json(".", folder=tmp_path)
    assert find(content, 8) == []
    assert [item["unit"] for item in content["deviations"]] == [unit]


def test_an_expired_deviation_is_said_to_be(tmp_path: Path) -> None:
    write_register(tmp_path, write_dynamic(tmp_path), date.today() - timedelta(days=1))
    content = read_json(".", folder=tmp_path)
    assert "expired" in str(find(content, 0)[0]["message"])
    assert len(find(content, 8)) == 1
    assert content["deviations"] == []


def test_a_part_of_a_tree_has_the_units_of_the_whole(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN | {"pkg/a.py": DYNAMIC["a.py"]} | {f"pkg/m{n}.py": CLEAN["pkg/sums.py"] for n in range(60)})
    (finding,) = find(read_json(".", "--rule", "8", folder=tmp_path), 8)
    write_register(tmp_path, str(finding["unit"]), date.today() + timedelta(days=100))
    for path, count in (("pkg", 1), ("pkg/sums.py", 0)):
        content = read_json(path, "--register", "compliance.toml", folder=tmp_path)
        assert [len(content["deviations"]), find(content, 0)] == [count, []]


@pytest.mark.parametrize(
    ("path", "name", "line"),
    [
        ("pkg/__init__.py", "pkg", "from pkg.a import f\n"),
        ("pkg/a.py", "pkg.a", "from . import f\n"),
    ],
    ids=["its first file", "a file of it"],
)
def test_a_package_as_a_tree_has_the_names_that_others_import(tmp_path: Path, path: str, name: str, line: str) -> None:
    write_tree(tmp_path, {"pkg/__init__.py": "", "pkg/a.py": ""} | {path: line})
    assert {"pkg", "pkg.a"} == {module.name for module in read_tree(tmp_path / "pkg").modules}
    assert [module.name for module in read_tree(tmp_path / path).modules] == [name]


def test_recursion_over_files_of_a_package_is_seen_from_inside(tmp_path: Path) -> None:
    first = "from .a import g\ndef f(x: int) -> int:\n    return g(x)\n"
    second = "from pkg import f\ndef g(x: int) -> int:\n    return f(x)\n"
    tree = read_tree(write_tree(tmp_path, {"pkg/__init__.py": first, "pkg/a.py": second}) / "pkg")
    assert [sorted(cycle) for cycle in CallGraph(tree).find_cycles()] == [["pkg.a.g", "pkg.f"]]


def test_it_needs_no_library_and_no_part_of_the_package(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN)
    assert run(".", "--rule", "1", folder=tmp_path, options=("-S",)).returncode == 0
    code = "import sys, research.compliance.__main__, research.compliance.peers; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = result.stdout.split()
    assert [name for name in names if name.startswith("research.") and not name.startswith("research.compliance")] == []
    assert {name.split(".")[0] for name in names if not name.startswith("_")} <= sys.stdlib_module_names | {"research"}


def test_a_reader_that_goes_is_no_error(tmp_path: Path) -> None:
    write_tree(tmp_path, CLEAN | DYNAMIC)
    command = f"{sys.executable} -m research.compliance . --json | true; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_help_is_fast() -> None:
    start = monotonic()
    assert run("--help", folder=ROOT).returncode == 0
    assert monotonic() - start < 2  # 0.1 on a quiet machine


@pytest.mark.parametrize("number", RULES)
def test_the_table_runs_the_rule_of_its_number(tmp_path: Path, number: int) -> None:
    tree = read_tree(write_tree(tmp_path, CLEAN))
    (result,) = run_rules(Inputs(tree, CallGraph(tree)), [number])
    assert (result.rule, RULES[number].number) == (number, number)


def test_an_unknown_rule_is_refused(tmp_path: Path) -> None:
    tree = read_tree(write_tree(tmp_path, CLEAN))
    with pytest.raises(ValueError, match="rule=11: there is no such rule"):
        run_rules(Inputs(tree, CallGraph(tree)), [11])
