"""python -m research.export RUN --format gguf --output DIR     what was trained, as files that other programs load

Each file is run by its real client on held-out data before it is put in place; one that does not compute what was trained is
refused, with the numbers.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research import signals
from research.cli import Parser, print_message, run_command

if TYPE_CHECKING:
    from research.export.layout import Source

FORMATS = ("hf", "gguf", "onnx", "torch", "safetensors")
REPORT_FILE = "export.json"
OPTION_FORMATS = {"packing": "hf", "type": "gguf", "embedding": "gguf"}  # option -> the format that it is for


def build_parser() -> Parser:
    command = Parser("python -m research.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("run", metavar="RUN", help="a run folder, one of its checkpoints/step-*, or an MLflow run id")
    command.add_argument("--format", required=True, choices=FORMATS)
    command.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--packing", choices=("autobitlinear", "bitlinear", "none"),
                         help="hf: which layer of transformers takes the weights; none: unpacked ones")  # fmt: skip
    command.add_argument("--type", choices=("TQ2_0", "TQ1_0", "F16"), help="gguf: of ternary weights (TQ2_0)")
    command.add_argument("--embedding", choices=("F16", "F32", "Q8_0"), help="gguf: of embedding and head (F16)")
    command.add_argument("--tokens", type=int, default=4096, metavar="N", help="held-out tokens to check on (4096)")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 with one message on stderr and the output folder as it was."""
    command = build_parser()
    given = command.parse_args(arguments)
    options = {name: value for name in OPTION_FORMATS if (value := getattr(given, name)) is not None}
    for name in options:
        if OPTION_FORMATS[name] != given.format:
            command.error(f"--{name} is for --format {OPTION_FORMATS[name]}; leave it out")
    if given.tokens < 1:
        command.error(f"--tokens {given.tokens}: give at least 1")
    return run_command(lambda watch: export(given.run, given.format, given.output, options, given.tokens, watch))


def export(run: str, kind: str, output: Path, options: dict[str, str], tokens: int, watch: signals.Watch) -> None:
    """Write it, check it, put it in place; the report stands beside it as export.json.

    Raises ValueError for what the format cannot hold or does not compute as it was trained, with nothing left behind.
    """
    begun = time.monotonic()
    with watch.raise_immediately():
        from research.export import layout, verify  # torch comes with them
        from research.load import load_run
        from research.run_dir import write_json

        check_output(output)
        writer = import_module(f"research.export.{kind}")
        layout.require_installed(kind, writer.EXTRA, writer.MODULES)
        source, chosen = layout.build_source(load_run(run)), layout.Options(**options)
    with stage_output(output) as folder, watch.raise_immediately():  # once the folder is put in its place a signal is too late
        used = {name: value for name, value in asdict(chosen).items() if OPTION_FORMATS[name] == kind}
        report = describe_export(source, kind, used) | verify.verify_export(source, kind, chosen, folder, tokens)
        report |= {"files": verify.hash_files(folder), "seconds": round(time.monotonic() - begun, 1)}
        write_json(folder / REPORT_FILE, report)
    upload_report(source, output / REPORT_FILE, kind)
    print_report(report, output)


def describe_export(source: "Source", kind: str, options: dict[str, str]) -> dict[str, Any]:
    """What was exported."""
    trained = source.run
    ternary = sum(layer.weight.numel() for layer in source.linears.values())
    rest = sum(p.numel() for p in source.model.parameters()) - ternary
    model = source.architecture | {"ternary": ternary, "rest": rest}
    return {
        "format": kind,
        "options": options,
        "run": trained.folder.name,
        "checkpoint": trained.checkpoint.name,
        "model": model,
    }


def check_output(output: Path) -> None:
    """Raises ValueError where no folder can take this place."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is there already; give a new or empty folder")
    if output.resolve() == Path.cwd() or os.path.ismount(output):
        raise ValueError(f"--output {output} cannot be replaced, as the folder you are in or a mount; give a new one in it")


@contextmanager
def stage_output(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place once the block is left, and is gone if it fails. What an export that was
    killed has left there makes way. Raises ValueError where one is under way.
    """
    from research.run_dir import lock
    from research.training.checkpoint import sync

    output = output.resolve()
    around = output.with_name(f".{output.name}.draft")
    made = [parent for parent in output.parents if not parent.exists()]
    folder = around / output.name
    with ExitStack() as cleared:
        try:
            cleared.callback(remove_empty, made)
            around.mkdir(parents=True, exist_ok=True)
            cleared.enter_context(lock(around, f"--output {output}: another export is writing there; give another folder"))
            cleared.callback(shutil.rmtree, around, ignore_errors=True)
            for left in around.glob("[!.]*"):
                shutil.rmtree(left)
            folder.mkdir()
        except OSError as error:
            raise ValueError(f"--output {output} cannot be made: {error.strerror}") from error
        yield folder
        if output.exists():
            shutil.copymode(output, folder)
        for path in (*filter(Path.is_file, folder.rglob("*")), folder):
            path.chmod(path.stat().st_mode | folder.stat().st_mode & 0o666)  # some libraries write for their user alone
            sync(path)
        folder.replace(output)  # an empty one makes way
        sync(output.parent)


def remove_empty(folders: list[Path]) -> None:
    """Remove those that are there and empty, the innermost first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def print_report(report: dict[str, Any], output: Path) -> None:
    """On the terminal; where that cannot be, the export is as good."""
    client = ", ".join(f"{name} {version}" for name, version in report["client"].items())
    size = sum(file["bytes"] for file in report["files"].values())
    lines = [
        f"{'export':<17} {report['format']} of {report['run']}, {report['checkpoint']}: {size / 1e3:,.0f} kB",
        f"{'run by':<17} {client}, on {report['tokens']:,} held-out tokens",
    ]
    for name, check in report["checks"].items():
        value = check["value"] if isinstance(check["value"], bool) else f"{check['value']:.3g}"
        bound = f" (at most {check['bound']:g})" if check["bound"] not in (None, True) else ""
        lines.append(f"{name:<17} {value}{bound}")
    print_message("\n".join([*lines, f"{'folder':<17} {output}"]), sys.stdout)
    for warning in report["warnings"]:
        print_message(f"warning: {warning}")


def upload_report(source: "Source", file: Path, kind: str) -> None:
    """The report among the artifacts of the run in MLflow, where it has one."""
    from research.run_dir import read_json

    folder = source.run.folder
    run_id = read_json(folder / "summary.json").get("mlflow_run_id")
    if not run_id:
        return
    from research.export.verify import first_line
    from research.tracking import mlflow_store
    from research.tracking.mlflow_store import shorten_timeouts

    uri = (source.run.config.get("tracker") or {}).get("uri")
    try:
        with shorten_timeouts():
            mlflow_store.add_artifact(str(run_id), file, f"export/{kind}", uri)
    except Exception as error:  # whatever a store raises: the export is done
        print_message(f"warning: MLflow did not take the report ({first_line(error)[:200]}); it is {file}")


if __name__ == "__main__":
    sys.exit(main())
