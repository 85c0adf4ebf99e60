"""python -m research.export RUN --format gguf --output DIR     write a trained run as files that other programs load

Before the folder DIR appears, the program that the format is for runs the files on held-out data. An export that does not
compute what was trained is refused, with the numbers.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from research import signals
from research.cli import Parser, print_message, protect_streams, run_command
from research.run_dir import expand_path
from research.tracking.find import check_run

REPORT_FILE = "export.json"
OPTION_FORMATS = {"packing": "hf", "type": "gguf", "embedding": "gguf"}  # option -> the format that it is for


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 1 or 2 with one message on stderr and the output folder unchanged."""
    command = Parser("python -m research.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("run", metavar="RUN", help="a run folder, one of its checkpoints/step-*, or an MLflow run id")
    command.add_argument("--format", required=True, choices=("hf", "gguf", "onnx", "torch", "safetensors"))
    command.add_argument("--output", required=True, type=expand_path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--packing", choices=("bitlinear", "autobitlinear", "none", "plain"),
                         help="hf: transformers' layer for the weights (bitlinear); plain: code * scale")  # fmt: skip
    command.add_argument("--type", choices=("TQ2_0", "TQ1_0", "F16"), help="gguf: type of the ternary weights (TQ2_0)")
    command.add_argument("--embedding", choices=("F16", "F32", "Q8_0"), help="gguf: type of the embedding and the head (F16)")
    command.add_argument(
        "--tokens", type=int, default=4096, metavar="N", help="number of held-out tokens, or samples, for the check (4096)"
    )
    args = command.parse_args(arguments)
    options = {name: value for name in OPTION_FORMATS if (value := getattr(args, name)) is not None}
    for name in options:
        if OPTION_FORMATS[name] != args.format:
            command.error(f"--{name} is for --format {OPTION_FORMATS[name]}; leave it out")
    if args.tokens < 1:
        command.error(f"--tokens {args.tokens}: give at least 1")
    return run_command(lambda watch: export(args.run, args.format, args.output, options, args.tokens, watch))


def export(run: str, kind: str, output: Path, options: dict[str, str], tokens: int, watch: signals.Watch) -> None:
    """Write the run in a format, check the files, then move them to `output` with a report, export.json.

    Raise ValueError where the format cannot hold the model or computes something else; then no file is left behind.
    """
    start = time.monotonic()
    check_run(run)
    with watch.raise_immediately():
        # torch comes with these: a wrong option is answered before
        from research.export import layout, verify
        from research.load import load_run
        from research.run_dir import write_json

        writer = import_module(f"research.export.{kind}")
        if missing := [name for name in writer.MODULES if find_spec(name) is None]:
            libraries = ", ".join(missing)
            raise ValueError(f"--format {kind} needs {libraries}, which is not installed; run pip install -e '.[{kind}]'")
    # A signal ends the export until the files are moved to `output`; then it comes too late.
    with stage_output(output) as folder, watch.raise_immediately():
        source, settings = layout.build_source(load_run(run)), layout.Options(**options)
        ternary = sum(layer.weight.numel() for layer in source.linears.values())
        rest = sum(p.numel() for p in source.model.parameters()) - ternary
        report = {
            "format": kind,
            "options": {name: value for name, value in asdict(settings).items() if OPTION_FORMATS[name] == kind},
            "run": source.run.folder.name,
            "checkpoint": source.run.checkpoint.name,
            "model": source.architecture | {"ternary": ternary, "rest": rest},
            **({"class_names": source.run.classes} if source.run.classes else {}),
            **verify.verify_export(source, kind, settings, folder, tokens),
            "files": verify.hash_files(folder),
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(folder / REPORT_FILE, report)
    uri = (source.run.config.get("tracker") or {}).get("uri")
    upload_report(source.run.folder, output / REPORT_FILE, f"export/{kind}", uri)
    print_report(report, output)


@contextmanager
def stage_output(output: Path) -> Iterator[Path]:
    """Yield a draft folder beside `output`; after the block rename it to `output`, or delete it where the block raises.

    Delete first what a killed export has left there. Raise ValueError where `output` has files, cannot be made or replaced, or
    another export is writing to it.
    """
    from research.run_dir import lock, sync

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} already exists and is not empty; give a new or empty folder")
    if output.resolve() == Path.cwd() or os.path.ismount(output):
        kind = "the current folder or a mount, which cannot be replaced"
        raise ValueError(f"--output {output} is {kind}; give a new folder below it")
    output = output.resolve()
    draft = output.with_name(f".{output.name}.draft")
    new_parents = [parent for parent in output.parents if not parent.exists()]
    folder = draft / output.name
    with ExitStack() as cleanup:
        try:
            cleanup.callback(remove_empty, new_parents)
            cleanup.enter_context(lock(draft, f"--output {output}: another export is writing there; give another folder"))
            # Only from here on: another export still writes to a draft that is locked.
            cleanup.callback(shutil.rmtree, draft, ignore_errors=True)
            for leftover in draft.glob("[!.]*"):
                shutil.rmtree(leftover)
            folder.mkdir()
        except OSError as error:
            raise ValueError(f"--output {output} cannot be made: {error.strerror}") from error
        yield folder
        if output.exists():
            shutil.copymode(output, folder)
        for path in (*filter(Path.is_file, folder.rglob("*")), folder):
            # some libraries make files that only their user can read
            path.chmod(path.stat().st_mode | folder.stat().st_mode & 0o666)
            sync(path)
        folder.replace(output)  # replaces an empty folder
        sync(output.parent)


def remove_empty(folders: list[Path]) -> None:
    """Remove the folders that exist and are empty, the innermost first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def print_report(report: dict[str, Any], output: Path) -> None:
    """Print the report on stdout."""
    client = ", ".join(f"{name} {version}" for name, version in report["client"].items())
    held_out = next(f"{report[unit]:,} held-out {unit}" for unit in ("tokens", "samples") if unit in report)
    size = sum(file["bytes"] for file in report["files"].values())
    rows: dict[str, object] = {
        "export": f"{report['format']} of {report['run']}, {report['checkpoint']}: {size / 1e3:,.0f} kB",
        "run by": f"{client}, on {held_out}",
    }
    for name, check in report["checks"].items():
        value = check["value"] if isinstance(check["value"], bool) else f"{check['value']:.3g}"
        bound = f" (at most {check['bound']:g})" if check["bound"] not in (None, True) else ""
        rows[name] = f"{value}{bound}"
    rows["folder"] = output
    print_message("\n".join(f"{name:<17} {value}" for name, value in rows.items()), sys.stdout)
    for warning in report["warnings"]:
        print_message(f"warning: {warning}")


def upload_report(run_folder: Path, file: Path, artifact_folder: str, uri: str | None) -> None:
    """Add the report to the artifacts of the folder's own run in MLflow; print a warning where MLflow fails."""
    from research.export.verify import describe_error
    from research.tracking.mlflow_store import RUN_ID_FILE, choose_uri, connect_briefly, read_run_id

    if not (run_folder / RUN_ID_FILE).exists():
        return
    try:
        with connect_briefly(choose_uri(uri)) as client:
            client.log_artifact(read_run_id(client, run_folder), str(file), artifact_folder)
    except Exception as error:  # stores raise many types, and the export is complete
        print_message(f"warning: MLflow did not accept the report ({describe_error(error)}); it is {file}")


if __name__ == "__main__":
    protect_streams()
    sys.exit(main())
