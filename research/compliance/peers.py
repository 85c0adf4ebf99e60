"""python -m research.compliance.peers [NAMES...]: the same rules over packages that are installed, as a table.

It finds packages without importing them, reads their files, and writes nothing. No register counts: peers have none.
"""

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from research.compliance.output import Parser, warn, write
from research.compliance.rules import RULES, Inputs, run_rules
from research.compliance.score import Report, to_text
from research.compliance.syntax.calls import CallGraph
from research.compliance.syntax.contract import contract
from research.compliance.syntax.functions import list_functions
from research.compliance.syntax.tree import iter_files, read_tree

ANALYSERS_RULE = 10  # of a peer only where --ruff asks for it: its own settings are others
PEERS = (
    *("accelerate", "alembic", "attr", "bitnet", "click", "fastapi", "grokadamw", "huey", "huggingface_hub", "hydra"),
    *("hydra_plugins.hydra_optuna_sweeper", "litgpt", "mlflow", "omegaconf", "optuna", "peft", "pydantic", "requests"),
    *("safetensors", "sklearn", "stable_baselines3", "starlette", "torchtitan", "uvicorn"),
)


@dataclass(frozen=True)
class Peer:
    """The scores of a package."""

    name: str
    lines: int  # of the files that count
    functions: int
    score: float
    floor: float
    rules: dict[int, float]  # number -> score


@contract
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of peers, or one line of JSON. Return 0, or 2 where no package can be read."""
    parser = Parser(prog="python -m research.compliance.peers", description="The same rules over other packages.")
    parser.add_argument(
        "names", metavar="NAME", nargs="*", default=PEERS, help="packages as they are imported (those of the docs)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON in place of the table")
    parser.add_argument("--ruff", action="store_true", help="rule 10 too, under this folder's settings")
    args = parser.parse_args(arguments)
    numbers = [number for number in RULES if args.ruff or number != ANALYSERS_RULE]
    paths = {name: find_source(name) for name in dict.fromkeys(args.names)}
    peers = [measure(name, path, numbers) for name, path in paths.items() if path is not None]
    if missing := [name for name, path in paths.items() if path is None]:
        warn(f"note: without Python files here: {', '.join(missing)}")
    if not peers:
        warn("error: none of these packages has Python files here; install one, or name another")
        return 2
    peers.sort(key=lambda peer: (-peer.score, peer.name))
    is_written = write(json.dumps([asdict(peer) for peer in peers]) if args.json else format_table(peers, numbers))
    return 0 if is_written else 2


@contract
def find_source(name: str) -> Path | None:
    """Return the folder or file of an installed package, without importing it; None where there is none with Python files."""
    top, _, rest = name.partition(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    candidates = [path.joinpath(*rest.split(".")) if rest else path for path in list_folders(spec)]
    if spec is not None and spec.origin and not rest and not candidates:
        candidates = [Path(spec.origin)]  # a single module
    candidates += [path.with_suffix(".py") for path in candidates if rest]
    return next((path for path in candidates if has_source(path)), None)


def list_folders(spec: importlib.machinery.ModuleSpec | None) -> list[Path]:
    """Return the folders of a package; several where it is a namespace."""
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]


def has_source(path: Path) -> bool:
    """Return whether a path is a file of Python or a folder with some."""
    return any(iter_files(path)) if path.is_dir() else path.is_file() and path.suffix == ".py"


@contract
def measure(name: str, path: Path, numbers: Sequence[int]) -> Peer:
    """Return the scores of a package. Raise ValueError where it has no file of Python."""
    tree = read_tree(path)
    report = Report("", run_rules(Inputs(tree, CallGraph(tree)), numbers))
    functions = sum(len(list_functions(module)) for module in tree.modules)
    lines = sum(len(module.lines) for module in tree.modules)
    return Peer(name, lines, functions, report.mean, report.floor, {result.rule: result.score for result in report.results})


@contract
def format_table(peers: Sequence[Peer], numbers: Sequence[int]) -> str:
    """Return peers as a table of Markdown, below a line that says over which rules the mean is."""
    head = ["package", "lines", "functions", "mean", "floor", *(f"R{number}" for number in numbers)]
    rows = [
        [
            peer.name,
            str(peer.lines),
            str(peer.functions),
            to_text(peer.score),
            to_text(peer.floor),
            *map(to_text, peer.rules.values()),
        ]
        for peer in peers
    ]
    mean = (
        f"The mean is over {len(numbers)} rules"
        + ("" if ANALYSERS_RULE in numbers else ", without rule 10")
        + ". No register counts."
    )
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    return "\n".join([mean, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
