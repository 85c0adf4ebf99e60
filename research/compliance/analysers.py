"""Rule 10: all warnings on, none left. Ruff and mypy find nothing in a file, and nothing silences them as a whole."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from research.compliance.findings import Finding, RuleResult
from research.compliance.results import read_mypy
from research.compliance.syntax.functions import get_last_name
from research.compliance.syntax.tree import Module, Tree, walk

RULE = 10
SECONDS = 60  # that ruff may take
BLANKET = re.compile(
    r"#\s*(?:noqa(?!\s*:)|type:\s*ignore(?!\[))|#\s*(?:ruff:\s*noqa|mypy:\s*ignore-errors|pylint:\s*skip-file)"
)
SILENCERS = {"filterwarnings", "simplefilter"}


def check(tree: Tree, mypy_lines: Sequence[str] | None = None) -> RuleResult:
    """Return the files in which an analyser finds something, or where it is told to look away."""
    errors, (lints, note) = read_mypy(mypy_lines or (), tree.root), run_ruff(tree)
    findings = list[Finding]()
    for module in tree.modules:
        faults = [*find_silenced(module), *lints.get(module.path, [])]
        faults += [(line, "mypy reports an error; mend it") for line in sorted(errors.get(module.path, ()))]
        if faults:
            line, message = min(faults)
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            findings.append(Finding(module.path, line, RULE, module.name, f"{message}{more}"))
    return RuleResult(RULE, len(tree.modules), findings, notes=(note,) if note else ())


def find_silenced(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the lines that silence an analyser as a whole, or all warnings of a program."""
    for number, line in enumerate(module.lines, start=1):
        comment = line.partition("#")[2]
        if comment and BLANKET.search(f"#{comment}"):
            yield number, "a comment silences all findings; name the one that is meant, as noqa: E501"
    guarded = set[int]()
    for node in module.nodes:
        is_guard = isinstance(node, ast.With) and any(
            get_last_name(item.context_expr) == "catch_warnings" for item in node.items
        )
        guarded |= {id(child) for child in walk(node)} if is_guard else set()
    for node in module.nodes:
        is_silent = isinstance(node, ast.Call) and get_last_name(node) in SILENCERS and len(node.args) == 1
        if not isinstance(node, ast.Call) or not is_silent or node.keywords or id(node) in guarded:
            continue
        if isinstance(node.args[0], ast.Constant) and node.args[0].value == "ignore":
            yield node.lineno, "all warnings of the program are off; name the message or the category"


def run_ruff(tree: Tree) -> tuple[dict[str, list[tuple[int, str]]], str]:
    """Return what ruff finds, by file, under the settings of the tree, and why it could not look; empty where it could."""
    if find_spec("ruff") is None:
        return {}, "ruff is not installed: rule 10 judges without it"
    path = tree.modules[0].path if len(tree.modules) == 1 else "."
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", "--quiet", path]
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
