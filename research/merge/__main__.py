"""python -m research.merge RUN --output DIR     make a plain run of one that was fine-tuned on a frozen base

DIR is a run folder: finetune.base (finetune=full trains it on), generate, evaluate and export take it, without the base.
What was fine-tuned inside ternary layers merges to the bit. An adapter beside ternary layers would be lost in their rounding:
that is refused, with what would be lost.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from research import signals
from research.cli import Parser, print_message, protect_streams, run_command
from research.contracts import contract
from research.files.stage import stage_output
from research.options.finetuning import SIDE, get_target, is_beside
from research.run_dir import expand_path
from research.tracking.find import check_run, find_run


@contract
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 1 or 2 with one message on stderr and the output folder unchanged."""
    command = Parser("python -m research.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("run", metavar="RUN", help="a run folder, one of its checkpoints/step-*, or an MLflow run id")
    command.add_argument("--output", required=True, type=expand_path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--base", metavar="FOLDER", help="where the base of the run is now, if it was moved")
    command.add_argument(
        "--samples", type=int, default=64, metavar="N", help="held-back samples, for what an adapter beside layers loses (64)"
    )
    args = command.parse_args(arguments)
    if args.samples < 1:
        command.error(f"--samples {args.samples}: give at least 1")
    return run_command(lambda watch: merge(args.run, args.output, args.base, args.samples, watch))


def merge(run: str, output: Path, base: str | None, num_samples: int, watch: signals.Watch) -> None:
    """Write the plain run and print what it is. Raise ValueError where there is none; then no file is left behind."""
    check_run(run)
    with stage_output(output) as folder, watch.raise_immediately():
        check_kind(run)
        # torch comes with these: a wrong option is answered before
        from research.merge.plain import build_plain, check_plain, write_plain

        plain, lines = build_plain(run, base, num_samples)
        write_plain(plain, folder)
        lines |= check_plain(folder, plain)
    rows = {"merged": f"{plain.kind} of {plain.run.folder.name}, {plain.run.checkpoint.name}", **lines, "folder": str(output)}
    print_message("\n".join(f"{name:<17} {value}" for name, value in rows.items()), sys.stdout)


def check_kind(run: str) -> None:
    """Raise ValueError for a run that is plain already, or was fine-tuned in a way of one's own."""
    from research.composition.recorded import load_config

    config = load_config(find_run(run))[0]
    if is_beside(config) and get_target(config) != SIDE:
        fix = "use it as it is: its checkpoints belong to the base that it began at"
        raise ValueError(f"RUN={run} was fine-tuned by {get_target(config)}, of which no merge is known\n{fix}")
    if not get_target(config):
        raise ValueError(f"RUN={run} was not fine-tuned: it is a plain run, use it as it is")


if __name__ == "__main__":
    protect_streams()
    sys.exit(main())
