"""The check of an export: the format's own client runs the files, and its results are compared with the training forward.

Single logits are not compared: one last bit can flip an int8 code. A stand-in with random weights is compared too, as a model
that has learnt little hides mistakes. docs/exports.md says what the bounds mean.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from research.cli import first_line, run_process
from research.contracts import contract
from research.data.splits import spread_evenly
from research.export.layout import IN_PYTHON, Codes, Options, Source
from research.export.stand_in import build_stand_in
from research.losses import IGNORE
from research.rules import check_extra, enforce
from research.training.manifest import hash_file

Logits = Float[Tensor, "n *positions classes"]  # of images that have a class for each pixel: "n classes height width"
Inputs = Num[Tensor, "n ..."]  # tokens, images or vectors
Client = Callable[[Tensor], Tensor]  # a batch of inputs to logits, by the program that a format is for
MAX_DIVERGENCE, MAX_PERPLEXITY_SHIFT = 1e-3, 0.005  # nats a position; share of the reference's perplexity
# At the bound of the divergence, perplexities of fewer targets differ by more than 0.15 % by chance.
MIN_TARGETS = 1000
# Nats a position. llama.cpp, which rounds differently, stays below 0.004; a wrong activation gives 0.1 and more.
MAX_STAND_IN_DIVERGENCE = 0.01
SCALE_TOLERANCE = 1e-6  # relative; scales are stored in float32, by one client as the reciprocal
LANGUAGE_CLIENTS = ("hf", "gguf")  # formats of programs for language models: they have tokenizers, and no document masks
MAX_LOGITS = 1 << 25  # two gigabytes with the copies that the comparison makes
# The start of each script for `run_client`: what it may use.
CLIENT_PREAMBLE = """
import json, sys
import numpy as np

file, tokens, logits_path, threads, probe = sys.argv[1:]
tokens, threads, probe = np.load(tokens), int(threads), json.loads(probe).encode()
"""
# Spaces, more of them than a client may hold in a token, line ends, a zero byte and its name U+0100, marks of other tokenizers,
# characters of two to four bytes.
PROBE = f" def f(x):\n\n{' ' * 80}return  x\t<0x41> <s> a\u2581b\r\n\0it's 12345 \u0100 \u00e9 \u6f22 \U0001f600 "


@dataclass(frozen=True)
class ClientResult:
    """What the client of a format reads from the files, and computes."""

    client: str  # the packages that took part, whose versions stand in the report
    codes: Codes
    logits: Logits
    extra_checks: dict[str, bool] = field(default_factory=dict)  # name of a further check -> whether it holds
    scale_tolerance: float = SCALE_TOLERANCE  # of a format that stores some scales in half precision


@contract
def import_format(kind: str, setting: str) -> Any:
    """Return the module of a format: its `write`, `read` and `open_client`. Raise ValueError where a library is missing."""
    module = import_module(f"research.export.{kind}")
    enforce(*(check_extra(setting, name, kind) for name in module.MODULES))
    return module


@contract
def verify_export(source: Source, kind: str, options: Options, folder: Path, tokens: int) -> dict[str, Any]:
    """Write the model, let the client run it and a stand-in, and return the report. Raise ValueError where a check fails."""
    inputs, targets = select_held_out(source, tokens)
    is_unmasked = source.end >= 0 and kind in LANGUAGE_CLIENTS
    if is_unmasked:  # each sequence becomes one document
        inputs = inputs.where(inputs != source.end, (source.end + 1) % source.architecture["vocab"])
    warnings, result = write_and_run(source, kind, options, folder, inputs)
    if is_unmasked:
        warnings.append("model.document_mask=true, and this client masks nothing: give it one document at a time")
    if targets.numel() < MIN_TARGETS:
        seq_len = inputs.shape[1] if source.reads_tokens else 1
        can_grow = tokens <= len(inputs) * seq_len < len(source.run.data.val) * seq_len  # else the split or MAX_LOGITS ends it
        fix = "give more --tokens" if can_grow else "the validation split, or what one check holds, has no more"
        few = f"fewer than {MIN_TARGETS} are too few to compare perplexities: {fix}"
        warnings.append(f"checked on {targets.numel()} held-out targets; {few}")
    report = build_report(source, result, inputs, targets) | {"warnings": warnings}
    stand_in = build_stand_in(source)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        _, result = write_and_run(stand_in, kind, options, Path(temporary), inputs)
    # Random weights have no meaningful perplexity.
    divergence, *_ = compare_distributions(stand_in.model(inputs), result.logits, targets)
    report["checks"]["stand-in's KL"] = _check(divergence, MAX_STAND_IN_DIVERGENCE)
    if reason := describe_failures(report):
        others = [name for name in source.formats if name not in (kind, *LANGUAGE_CLIENTS)]
        fix = f"; use --format {' or '.join(others)}" if others else ""
        raise ValueError(f"refused, nothing is written: --format {kind} does not compute what was trained: {reason}{fix}")
    return report


def write_and_run(source: Source, kind: str, options: Options, folder: Path, tokens: Inputs) -> tuple[list[str], ClientResult]:
    """Write the model and run it with the format's client; return warnings and result. Raise ValueError where one fails."""
    writer = import_module(f"research.export.{kind}")
    try:
        warnings = writer.write(source, folder, options)
        if source.run.tokenizer and kind not in LANGUAGE_CLIENTS:  # these have it in their own form
            source.run.tokenizer.save(folder)
    except ValueError:
        raise
    except Exception as error:  # libraries raise different types for a full disk
        raise ValueError(f"nothing is written: --format {kind} failed: {type(error).__name__}: {first_line(error)}") from error
    try:
        return warnings, writer.read(source, folder, tokens, options)
    except Exception as error:  # clients raise any type
        raise ValueError(
            f"refused, nothing is written: the client of {kind} cannot run it: {type(error).__name__}: {first_line(error)}"
        ) from error


def select_held_out(source: Source, tokens: int) -> tuple[Inputs, Int[Tensor, "n *seq"]]:
    """Return samples of the validation split with about `tokens` tokens, or as many samples, at least one, and their targets.

    Raise ValueError where the targets are numbers: what follows compares distributions over classes.
    """
    split, shape = source.run.data.val, source.run.data.shape
    seq_len = shape.seq_len if source.reads_tokens else 1
    count = min(len(split), max(1, min(-(-tokens // seq_len), MAX_LOGITS // (seq_len * source.outputs))))
    inputs, targets = split[spread_evenly(count, len(split))]
    if targets.is_floating_point():
        raise ValueError(f"RUN predicts numbers, and the check of exports compares classes; {IN_PYTHON}")
    return inputs.to(source.inputs[1].dtype), targets


def compare_distributions(trained: Logits, client: Logits, targets: Int[Tensor, "n *seq"]) -> tuple[float, float, float, float]:
    """Return the mean KL(trained || client) in nats, both perplexities, and the share of equal most likely classes or tokens.

    The perplexities are of the positions with a target: all, or the last one.
    """
    if trained.ndim == 4:
        trained, client = trained.movedim(1, -1), client.movedim(1, -1)
    # In float64: the divergence at its bound is a small difference of large logarithms.
    ours, theirs = trained.double().log_softmax(-1), client.double().log_softmax(-1)
    divergence = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    if ours.ndim == targets.ndim + 2:
        ours, theirs = ours[:, -1], theirs[:, -1]
    both = [F.nll_loss(p.flatten(0, -2), targets.flatten(), ignore_index=IGNORE).exp().item() for p in (ours, theirs)]
    return divergence, both[0], both[1], same


def compare_codes(expected: Codes, actual: Codes) -> tuple[dict[str, int], float]:
    """Return the number of different codes by layer, and the largest relative difference of a scale; NaN where one is NaN.

    In a layer that is missing or has another shape all codes differ, and the scale does by infinity.
    """
    wrong, drifts = {}, []
    for name, (codes, scale) in expected.items():
        other_codes, other_scale = actual.get(name, (codes.new_empty(0), scale.new_empty(0)))
        if not torch.equal(other_codes, codes):
            wrong[name] = int((other_codes != codes).sum()) if other_codes.shape == codes.shape else codes.numel()
        comparable = other_scale.numel() == scale.numel()
        drift = (other_scale.reshape(scale.shape) - scale).abs() / scale if comparable else torch.tensor(math.inf)
        drifts.append(drift.max())
    return wrong, torch.stack(drifts).max().item()


def build_report(source: Source, result: ClientResult, tokens: Inputs, targets: Int[Tensor, "n *seq"]) -> dict[str, Any]:
    """Return the report: each check with its value, its bound and whether it holds."""
    divergence, reference, theirs, same = compare_distributions(source.model(tokens), result.logits, targets)
    expected, wrong, checks = source.compute_codes(), dict[str, int](), dict[str, Any]()
    if expected:
        wrong, drift = compare_codes(expected, result.codes)
        count = sum(codes.numel() for codes, _ in expected.values())
        checks["codes that differ"] = _check(sum(wrong.values()), 0) | {"of": count}
        checks["scale"] = _check(drift, result.scale_tolerance)
    shift, perplexities = abs(theirs / reference - 1), {"reference": reference, "client": theirs}
    checks |= {
        "mean KL": _check(divergence, MAX_DIVERGENCE),
        "perplexity off by": _check(shift, MAX_PERPLEXITY_SHIFT) | perplexities,
        "top-1 agreement": {"value": same, "bound": None, "holds": True},
    }
    checks |= {name: {"value": holds, "bound": True, "holds": holds} for name, holds in result.extra_checks.items()}
    client = {name: version(name) for name in result.client.split()}
    held_out = {"tokens": tokens.numel(), "sequences": len(tokens)} if source.reads_tokens else {"samples": len(tokens)}
    report = {"client": client, **held_out, "checks": checks}
    return report | ({"layers that differ": wrong} if wrong else {})


def _check(value: float, bound: float) -> dict[str, Any]:
    """Return a check that holds up to its bound; NaN does not hold."""
    return {"value": value, "bound": bound, "holds": value <= bound}


def describe_failures(report: dict[str, Any]) -> str:
    """Return the checks that fail, in one line; empty where all hold."""
    wrong = []
    for name, check in report["checks"].items():
        if not check["holds"]:
            value, bound = check["value"], check["bound"]
            both = f" ({check['client']:.4g}, not {check['reference']:.4g})" if "client" in check else ""
            wrong.append(f"{name} {value:.3g}{both}, at most {bound:.3g}" if bound is not True else f"{name} does not hold")
    return "; ".join(wrong)


@contract
def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and sha256 of each file below a folder."""
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@contract
def run_client(script: str, file: Path, tokens: Inputs, probe: str = PROBE) -> tuple[Logits, str]:
    """Run a script of a client as a user would; return the logits that it saves and what it prints.

    It runs after CLIENT_PREAMBLE in a process of its own, without this package, so that a crash does not end the export.
    Raise RuntimeError where it fails.
    """
    with TemporaryDirectory() as folder:
        tokens_path, logits_path = Path(folder, "tokens.npy"), Path(folder, "logits.npy")
        np.save(tokens_path, tokens.numpy())
        paths = [str(path) for path in (file.absolute(), tokens_path, logits_path)]
        args = [*paths, str(torch.get_num_threads()), json.dumps(probe)]
        command = [sys.executable, "-Wignore", "-c", CLIENT_PREAMBLE + script, *args]
        done = run_process(f"the client that loads {file}", command, Path(folder))
        if done.returncode:
            reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise RuntimeError(f"{reason}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return torch.from_numpy(np.load(logits_path)), done.stdout
