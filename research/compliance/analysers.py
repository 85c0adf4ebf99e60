"""Rule 10: all warnings on, none left. Ruff and mypy find nothing in a file, and nothing silences them as a whole."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from research.compliance.findings import Finding, RuleResult
from research.compliance.results import read_mypy
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import get_last_name
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 10
SECONDS = 60  # that ruff may take
BLANKET = re.compile(
    r"#\s*(?:noqa(?!\s*:\s*[a-z])|type:\s*ignore(?!\[)|nosec(?!\s*:?\s*b\d)|pyright:\s*ignore(?!\[)|pylint:\s*disable=all)"
    r"|#\s*(?:(?:ruff|flake8):\s*noqa|mypy:\s*(?:ignore[-_]errors|follow[-_]imports)|pylint:\s*skip-file)",
    re.IGNORECASE,
)
SETTINGS = ("ruff.toml", ".ruff.toml", "pyproject.toml")
SILENCERS = {"filterwarnings", "simplefilter"}


@contract
def check(tree: Tree, mypy_lines: Sequence[str] | None = None) -> RuleResult:
    """Return the files in which an analyser finds something, or where it is told to look away."""
    errors, (lints, note) = read_mypy(mypy_lines or (), tree.root), run_ruff(tree)
    findings = [*find_settings(tree)]
    silent = len(findings)
    for module in tree.modules:
        faults = [*find_silenced(module), *lints.get(module.path, [])]
        faults += [(line, "mypy reports an error; mend it") for line in sorted(errors.get(module.path, ()))]
        if faults:
            line, message = min(faults)
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            findings.append(Finding(module.path, line, RULE, module.name, f"{message}{more}"))
    return RuleResult(RULE, len(tree.modules) + silent, findings, notes=(note,) if note else ())


def find_settings(tree: Tree) -> Iterator[Finding]:
    """Yield a finding for each file of settings in the tree's root that turns an analyser off for all files."""
    for name in SETTINGS:
        try:
            is_silent = silences(tomllib.loads((tree.root / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, TypeError):  # there is none, or ruff says what is wrong with it
            continue
        if is_silent:
            yield Finding(name, 1, RULE, name, "it turns ruff or mypy off for all files; name the rules that are meant")


def silences(content: Mapping[str, Any]) -> bool:
    """Return whether settings turn ruff or mypy off as a whole."""
    tools = content.get("tool", {"ruff": content})
    ruff = tools.get("ruff", {})
    lint = {**ruff, **ruff.get("lint", {})}
    everywhere = [codes for pattern, codes in lint.get("per-file-ignores", {}).items() if not pattern.strip("*/.py")]
    is_deaf = "ALL" in [*lint.get("ignore", []), *(code for codes in everywhere for code in codes)]
    is_blind = any(not pattern.strip("*/.") for pattern in lint.get("exclude", []))
    return is_deaf or is_blind or lint.get("select") == [] or tools.get("mypy", {}).get("ignore_errors") is True


def find_silenced(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the lines that silence an analyser as a whole, or all warnings of a program."""
    if BLANKET.search(module.text):
        tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)  # a text may hold what looks like a comment
        for token in tokens:
            if token.type == tokenize.COMMENT and BLANKET.search(token.string):
                yield token.start[0], "a comment silences all findings; name the one that is meant, as noqa: E501"
    nodes = module.nodes
    guards = [node for node in nodes if isinstance(node, ast.With) and "catch_warnings" in map(get_name_of, node.items)]
    guarded = {id(child) for guard in guards for child in walk(guard)}
    for node in nodes:
        if not isinstance(node, ast.Call) or get_last_name(node) not in SILENCERS or id(node) in guarded:
            continue
        values = [*node.args, *(word.value for word in node.keywords if word.arg == "action")]
        if len(values) == 1 and len(node.args) + len(node.keywords) == 1 and ast.unparse(values[0]) == "'ignore'":
            yield node.lineno, "all warnings of the program are off; name the message or the category"


def get_name_of(item: ast.withitem) -> str:
    """Return the last name of what a `with` enters."""
    return get_last_name(item.context_expr)


def run_ruff(tree: Tree) -> tuple[dict[str, list[tuple[int, str]]], str]:
    """Return what ruff finds, by file, under the settings of the tree, and why it could not look; empty where it could."""
    if find_spec("ruff") is None:
        return {}, "ruff is not installed: rule 10 judges without it"
    paths = [module.path for module in tree.modules] if len(tree.modules) == 1 else ["."]
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format",
        "json",
        "--quiet",
        *(paths if len(paths) == 1 else ["."]),
    ]
    try:
        done = subprocess.run(command, cwd=tree.root, capture_output=True, text=True, timeout=SECONDS, check=False)
        entries = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        reason = f"it took more than {SECONDS} s" if isinstance(error, subprocess.TimeoutExpired) else done.stderr.strip()
        return {}, f"ruff has not looked, rule 10 judges without it: {reason.splitlines()[0][:120] if reason else 'no output'}"
    lints: dict[str, list[tuple[int, str]]] = {}
    for entry in entries:
        name = entry["filename"].removeprefix(f"{tree.root.resolve()}/")
        lints.setdefault(name, []).append((entry["location"]["row"], f"ruff {entry['code']}: {entry['message'][:100]}"))
    return lints, ""
