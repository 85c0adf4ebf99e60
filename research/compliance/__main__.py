"""python -m research.compliance PATH: ten rules over a tree of Python files, a score, and the level that it reaches."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

from research.compliance.formats import Options, format_github, format_json, format_text
from research.compliance.output import Parser, escape_streams, warn, write
from research.compliance.register import REGISTER_FILE, Register, Scope, apply_register, read_register
from research.compliance.results import read_report
from research.compliance.rules import RULES, Inputs, run_rules
from research.compliance.sarif import format_sarif
from research.compliance.score import BY_NAME, Report, make_report
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.tree import Tree, find_package, read_tree

FORMATS: Mapping[str, Callable[[Report, Options], str]] = {
    "text": format_text,
    "json": format_json,
    "sarif": format_sarif,
    "github": format_github,
}
NOTICE_DAYS = 30  # before a deviation expires, a note says so


@contract
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of a tree. Return 0 where the level is reached, 1 where it is not, 2 where the command is wrong."""
    args = make_parser().parse_args(arguments)
    escape_streams()
    try:
        report = make(args, date.today())
    except (ValueError, OSError) as error:
        warn(f"error: {error}")
        return 2
    for note in report.notes:
        warn(f"note: {note}")
    name = "json" if args.json else args.format
    if not write(FORMATS[name](report, Options(args.level, args.findings))):
        return 2
    return 0 if report.reaches(args.level) else 1


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m research.compliance", description="The Power of Ten over a tree of Python files.")
    parser.add_argument("path", metavar="PATH", type=Path, help="a folder of Python files, or one of them")
    parser.add_argument("--level", choices=list(BY_NAME), default="defense", help="the level to reach (defense)")
    parser.add_argument("--format", choices=list(FORMATS), default="text", help="of the report (text)")
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--mypy-report", metavar="FILE", type=Path, help="what mypy printed for this tree")
    parser.add_argument("--register", metavar="FILE", type=Path, help=f"the deviations (PATH/{REGISTER_FILE}, where it exists)")
    parser.add_argument(
        "--rule", metavar="N", type=int, nargs="+", action="extend", choices=list(RULES), help="these rules alone; after PATH"
    )
    parser.add_argument("--findings", metavar="N", type=to_count, default=20, help="to show of each rule in a text (20)")
    return parser


def to_count(text: str) -> int:
    """Return the number that a text says. Raise ArgumentTypeError where it is no whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def make(args: argparse.Namespace, today: date) -> Report:
    """Return the report of a tree as the command line wants it.

    Raise ValueError or OSError where PATH or a file that is named cannot be read.
    """
    if not args.path.exists():
        raise ValueError(f"PATH={args.path}: there is no such file or folder")
    tree = read_tree(args.path)
    if not tree.modules and not tree.findings:
        raise ValueError(f"PATH={args.path}: all Python files are tests, configuration or generated; no file counts")
    rules = frozenset(args.rule or RULES)
    lines, unchecked = read_report(args.mypy_report, tree) if args.mypy_report else (None, "")
    register = load_register(args.register, tree)
    results = run_rules(Inputs(tree, CallGraph(tree), lines), rules)
    outcome = apply_register(register, results, Scope(rules, find_prefix(args.path, tree)), today)
    notes = [] if lines is not None else ["without --mypy-report, rules 7 and 10 do not know the types that mypy knows"]
    notes += [unchecked] if unchecked else []
    if len(rules) < len(RULES):
        notes.append(f"score and level are of {len(rules)} of {len(RULES)} rules")
    notes += [note for result in results for note in result.notes]
    notes += [
        f"the deviation of rule {item.rule} for {item.unit} expires on {item.expires}"
        for item in outcome.deviations
        if (item.expires - today).days <= NOTICE_DAYS
    ]
    return make_report(find_root(tree.root), tree, outcome, notes)


def load_register(path: Path | None, tree: Tree) -> Register:
    """Return the register that the command line names, or that of the tree's root; an empty one where there is none.

    Raise ValueError where the file that is named does not exist.
    """
    if path is not None and not path.exists():
        raise ValueError(f"--register {path}: there is no such file")
    chosen = path or tree.root / REGISTER_FILE
    name = os.path.relpath(chosen, tree.root).replace(os.sep, "/")
    return read_register(chosen, name) if path or os.path.lexists(chosen) else Register(name)


def find_prefix(path: Path, tree: Tree) -> str:
    """Return with what the units of a tree begin: the module of a single file, or the package that a folder is."""
    names = [item.name for item in tree.modules] + [item.unit for item in tree.findings]
    return names[0] if path.is_file() else find_package(tree.root)


def find_root(folder: Path) -> str:
    """Return what to put before the paths of a tree, so that they are seen from the current folder; empty for that one."""
    root = os.path.relpath(folder).replace(os.sep, "/")
    return "" if root == "." else folder.resolve().as_posix() if root.startswith("..") else root


if __name__ == "__main__":
    sys.exit(main())
