"""python -m research.export RUN --format gguf --output DIR     write a trained run as files that other programs load

Before the folder DIR appears, the program that the format is for runs the files on held-out data. An export that does not
compute what was trained is refused, with the numbers.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from research import signals
from research.cli import Parser, print_message, protect_streams, run_command
from research.contracts import contract
from research.options.finetuning import check_plain
from research.run_dir import expand_path
from research.tracking.find import check_run, find_run

OPTION_FORMATS = {"packing": "hf", "type": "gguf", "embedding": "gguf"}  # option -> the format that it is for


@contract
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
        from research.composition.recorded import load_config

        check_plain(load_config(find_run(run))[0], "an export")
        # torch comes with these: a wrong option is answered before
        from research.export import layout, verify
        from research.files.stage import EXPORT_FILE, stage_output
        from research.load import load_run
        from research.run_dir import write_json
        from research.tracking.mlflow_store import upload_report
        from research.training.manifest import read_manifest

        verify.import_format(kind, f"--format {kind}")
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
            "data": read_manifest(source.run.checkpoint).identity.get("data", ""),  # the start of their digest
            "model": source.architecture | {"ternary": ternary, "rest": rest},
            **({"class_names": source.run.classes} if source.run.classes else {}),
            **verify.verify_export(source, kind, settings, folder, tokens),
            "files": verify.hash_files(folder),
            "seconds": round(time.monotonic() - start, 1),
        }
        write_json(folder / EXPORT_FILE, report)
    uri = (source.run.config.get("tracker") or {}).get("uri")
    upload_report(source.run.folder, output / EXPORT_FILE, f"export/{kind}", uri)
    print_report(report, output)


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


if __name__ == "__main__":
    protect_streams()
    sys.exit(main())
