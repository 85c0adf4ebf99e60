"""python -m research.evaluate RUN... [data=text data.path=FILE]     judge trained runs, packed and exported models

Without overrides each run is judged on the data that it was trained with, as training itself does. Overrides choose other data,
as for train.py: data=text data.path=FILE data.seq_len=128 metrics=language. Several runs stand in one table, with their
differences to the first.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from research import signals
from research.cli import Parser, print_message, protect_streams, redirect_to_null, run_command
from research.contracts import contract
from research.run_dir import expand_path

if TYPE_CHECKING:
    from research.evaluate.refs import ModelRef  # with it comes hydra

OVERRIDE = r"[+~]*[A-Za-z][\w.@]*=.*|~[a-z][\w.]*"  # an override, as for train.py
LOW_PRECISIONS = ("bf16", "fp16")


@contract
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 1 or 2 with one message on stderr."""
    command = Parser("python -m research.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("arguments", nargs="+", metavar="RUN|KEY=VALUE",
                         help="a run folder or checkpoint, the folder of a sweep or an export, a save_pretrained folder, an "
                         "MLflow run id; and overrides for other data")  # fmt: skip
    command.add_argument("--split", choices=("val", "test", "train", "all"),
                         help="which samples (val of a run's own data, all of other data)")  # fmt: skip
    command.add_argument("--samples", type=int, metavar="N", help="judge the first N samples only")
    command.add_argument("--packed", action="store_true", help="judge runs with their ternary weights packed to two bits")
    command.add_argument("--batch-size", type=int, metavar="N", help="samples at a time (as in training)")
    command.add_argument("--device", choices=("auto", "cpu"), help="where runs are computed (as in training)")
    command.add_argument("--precision", choices=("fp32", *LOW_PRECISIONS), help="of the computation (as in training)")
    command.add_argument("--tasks", metavar="NAME|FILE", action="append",
                         help="tasks of lm-eval in place of data: names, or yaml files; may be repeated")  # fmt: skip
    command.add_argument("--tasks-folder", type=expand_path, metavar="DIR", help="a folder with yaml files of lm-eval's tasks")
    command.add_argument("--config-dir", action="append", type=expand_path, default=[], metavar="DIR",
                         help="a folder with options of your own, as data/mine.yaml")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    command.add_argument("--output", type=expand_path, metavar="FILE", help="also write the JSON object to a file")
    args = command.parse_intermixed_args(sys.argv[1:] if arguments is None else list(arguments))
    runs, overrides = split_arguments(args.arguments)
    if not runs:
        command.error(f"{' '.join(overrides)} chooses data; give a RUN too, as outputs/text/2026-01-31_12-00-00")
    for name in ("samples", "batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            command.error(f"--{name.replace('_', '-')} {value}: give at least 1")
    check_together(command, args, overrides)
    return run_command(lambda watch: work(args, runs, overrides, watch))


def check_together(command: Parser, args: argparse.Namespace, overrides: list[str]) -> None:
    """End with an error for options that do not go together, and for an output that cannot be written."""
    if args.tasks_folder and not args.tasks:
        command.error(f"--tasks-folder {args.tasks_folder}: name its tasks with --tasks")
    if args.tasks and (overrides or args.split):
        command.error(f"--tasks have data of their own; leave out {' '.join(overrides) or '--split'}")
    if args.tasks_folder and not args.tasks_folder.is_dir():
        command.error(f"--tasks-folder {args.tasks_folder}: there is no such folder")
    for words, is_chosen in (("--tasks compute", args.tasks), ("--packed computes", args.packed)):
        if is_chosen and (mistake := check_host(words, args)):
            command.error(mistake)
    for folder in args.config_dir:
        if not folder.is_dir():
            command.error(f"--config-dir {folder}: there is no such folder")
    if args.output and (args.output.is_dir() or not args.output.absolute().parent.is_dir()):
        command.error(f"--output {args.output}: give a file in a folder that is there")


def check_host(what: str, args: argparse.Namespace) -> str:
    """Return the mistake of another device or precision for what is computed on the CPU in fp32; empty for none."""
    wrong = ["--device auto"] * (args.device == "auto") + [f"--precision {args.precision}"] * (args.precision in LOW_PRECISIONS)
    return f"{what} on the CPU in fp32; leave out {' and '.join(wrong)}" if wrong else ""


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the runs and the overrides among the arguments. What is there as a file or folder is a run."""
    overrides = [
        text for text in arguments if re.fullmatch(OVERRIDE, text, re.DOTALL) and not os.path.exists(expand_path(text))
    ]
    return [text for text in arguments if text not in overrides], overrides


def work(args: argparse.Namespace, runs: list[str], overrides: list[str], watch: signals.Watch) -> None:
    """Judge the runs and print the result."""
    from research.evaluate.plan import plan_tasks
    from research.evaluate.refs import find_models

    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars of other libraries; they look as they are imported
    with watch.raise_immediately():
        refs = find_models(runs)
        if args.packed and (others := [ref.word for ref in refs if ref.kind != "run"]):
            raise ValueError(f"--packed is for runs, and {others[0]} is none; leave out one of the two")
        exports = [ref.word for ref in refs if ref.kind == "export"]
        if exports and (mistake := check_host(f"RUN={exports[0]}: an export is computed", args)):
            raise ValueError(mistake)
        tasks = [] if args.tasks else plan_tasks(refs, overrides, args.split, args.config_dir)
        # torch comes with these: what is asked wrongly is answered before
        if args.tasks:
            from research.evaluate.tasks import run_tasks

            content, text = run_tasks(refs, args)
        else:
            from research.evaluate.compare import Options, compare
            from research.evaluate.table import format_table, to_json

            names = ("split", "samples", "batch_size", "device", "precision", "packed")
            results = compare(refs, tasks, Options(**{name: getattr(args, name) for name in names}), watch.check)
            content, text = to_json(results), format_table(results)
    publish(content, text, args, refs)


@contract
def publish(content: dict[str, Any], text: str, args: argparse.Namespace, refs: "Sequence[ModelRef]") -> None:
    """Print the result, and write it to a file and to the runs' records in MLflow where that is requested."""
    import json

    from research.run_dir import write_json

    if args.output:
        write_json(args.output, content)
        from research.tracking.mlflow_store import upload_report

        runs = {ref.folder: ref.recorded.get("tracker") or {} for ref in refs if ref.kind == "run"}
        for folder, tracker in runs.items():
            upload_report(folder, args.output, "evaluate", tracker.get("uri"))
    try:
        print_message(json.dumps(content) if args.json else text, sys.stdout)
    except OSError as error:
        redirect_to_null(sys.stdout.fileno())  # Python flushes stdout once more as it exits, and would fail there
        if not isinstance(error, BrokenPipeError):
            raise


if __name__ == "__main__":
    protect_streams(prints_result=True)
    sys.exit(main())
