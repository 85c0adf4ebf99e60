"""The report of a sweep as one page: what results.md says, its pictures, what was corrected, and how to repeat it."""

import logging
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.cli import first_line
from research.contracts import contract
from research.report import gap
from research.report.blocks import Block, Heading, Items, Listing, Table, write
from research.report.content import build_blocks
from research.report.page import embed_figure, render_page
from research.report.plots import iter_plots
from research.report.preset import build_preset
from research.report.results import Sweep
from research.report.run_page import list_environment
from research.report.study import CORRECTION
from research.report.target import Target, find_target
from research.run_dir import read_json

MAX_ROWS = 50  # of a table
log = logging.getLogger(__name__)


@contract
def build_sweep_page(folder: Path, sweep: Sweep, plots: bool, gap_section: Sequence[Block]) -> str:
    """Return the page of a sweep."""
    target = find_target(sweep)
    pictures, reasons = embed_plots(sweep, target) if plots else ({}, {})
    if plots and gap_section:
        pictures["gap"], reasons["gap"] = embed_figure(gap.plot(gap.collect_arms(sweep)), "gap"), ""
    blocks = list(build_blocks(sweep, reasons, gap_section, target, MAX_ROWS))
    return render_page(f"{sweep.name}: the sweep", [*blocks, *list_more(folder, sweep)], pictures)


def embed_plots(sweep: Sweep, target: Target | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the pictures as HTML, and for each name why it is not there."""
    pictures: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name, reason, plot in iter_plots(sweep, target):
        reasons[name] = reason
        try:
            pictures |= {} if reason else {name: embed_figure(plot(), name)}
        except Exception as error:  # libraries raise errors of many kinds for unusual trials
            log.info("%s could not be drawn", name, exc_info=True)
            reasons[name] = f"{type(error).__name__}: {first_line(error)}"
    return pictures, reasons


def list_more(folder: Path, sweep: Sweep) -> Iterator[Block]:
    """Yield which rows are not what the study has, how to repeat the sweep and its best trial, and where its runs ran."""
    if notes := [f"trial {row.number}: {row.note}" for row in sweep.rows if CORRECTION in row.note]:
        yield Heading("Corrected")
        yield write("The records of these runs differ from the study. The rows above have what the runs' own records say.")
        yield Items(notes)
    environments = (read_json(path / "env.json") for row in sweep.rows for path in row.runs if (path / "env.json").exists())
    environment = next(environments, {})
    yield Heading("Again")
    if isinstance(command := environment.get("command"), list):
        yield write("The same command runs what is left of the sweep; a sweep that is finished is run again in a new folder:")
        git = environment.get("git")
        sha = [f"git checkout {git['sha']}"] if isinstance(git, dict) and git.get("sha") else []
        yield Listing("\n".join([*sha, shlex.join(["python", *map(str, command)])]))
    yield write("To write this report again:")
    yield Listing(shlex.join(["python", "-m", "research.report", str(folder), "--html"]))
    if sweep.best:
        yield write("The settings of the best trial, for conf/experiment/NAME.yaml:")
        yield Listing(build_preset(sweep, sweep.best[0]))
    if environment:
        yield Heading("Environment")
        yield Table(("", ""), list_environment(environment))
