"""The gate: what was written, run by its real client, against the training forward.

Rounding to int8 flips a code where two programs differ in the last bit of a float32, and a flip changes every number after
it: that no logit differs by much is the wrong question. What is asked is whether the codes are the same bits, and whether the
distributions are the same for all that one can tell: their mean divergence, the perplexity of held-out text.

A model that has learnt little says little: its distributions are almost flat, whatever a client computes. So the client also
runs a stand-in, the same layout with random weights that make each part of it count.
"""

import json
import math
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from research.export.layout import Codes, Options, Source
from research.losses import IGNORE
from research.nn.bitlinear import bitlinear_layers

MAX_DIVERGENCE, MAX_PERPLEXITY_SHIFT = 1e-3, 0.005  # nats a position; share of the reference's perplexity
MIN_TARGETS = 1000  # targets: at the bound of the divergence, perplexities of fewer differ by more than 0.15 % by chance
MAX_STAND_IN_DIVERGENCE = (
    0.01  # nats a position; llama.cpp, which rounds otherwise, stays below 0.004, a wrong activation gives 0.1 and more
)
SCALE_TOLERANCE = 1e-6  # share by which a step may differ: it is stored in float32, by one client as its reciprocal
MAX_LOGITS = 1 << 25  # numbers, at most: two gigabytes with what is made of them
# Spaces, ends of lines, a zero byte, marks of other tokenizers, two to four bytes a character.
PROBE = " def f(x):\n\n    return  x\t<0x41> <s> a\u2581b\r\n\0it's 12345 \u00e9 \u6f22 \U0001f600 "


@dataclass(frozen=True)
class ClientResult:
    """What the client of a format finds in the file, and computes."""

    client: str  # the distributions that took part, to be told with their versions
    codes: Codes
    logits: Float[Tensor, "n seq vocab"]
    extra_checks: dict[str, bool] = field(default_factory=dict)  # further checks: what is checked -> whether it holds


def verify_export(source: Source, kind: str, options: Options, folder: Path, tokens: int) -> dict[str, Any]:
    """Write it into the folder, and a stand-in for a moment beside it; the report on what the client computes of both.

    Raises ValueError where that is not what was trained.
    """
    inputs, targets = select_held_out(source, tokens)
    warnings, seen = write_and_run(source, kind, options, folder, inputs)
    if targets.numel() < MIN_TARGETS:
        warnings.append(
            f"checked on {targets.numel()} held-out targets; fewer than {MIN_TARGETS} tell no percentage: give more --tokens"
        )
    report = build_report(source, seen, inputs, targets) | {"warnings": warnings}
    other = build_stand_in(source)
    with TemporaryDirectory(dir=folder.parent) as place:
        _, seen = write_and_run(other, kind, options, Path(place), inputs)
    report["checks"] |= check_stand_in(other, seen, inputs)
    if reason := describe_failures(report):
        raise ValueError(f"refused, nothing is written: --format {kind} does not compute what was trained: {reason}")
    return report


def write_and_run(
    source: Source, kind: str, options: Options, folder: Path, tokens: Int[Tensor, "n seq"]
) -> tuple[list[str], ClientResult]:
    """Write it into the folder and run it there by its client: warnings, and what the client finds."""
    writer = import_module(f"research.export.{kind}")
    try:
        warnings = writer.write(source, folder, options)
    except ValueError:
        raise
    except Exception as error:  # of a full disk each library tells in its own way
        raise ValueError(f"nothing is written: --format {kind} could not be: {first_line(error)}") from error
    try:
        return warnings, writer.read(source, folder, tokens, options)
    except Exception as error:  # whatever a client raises
        raise ValueError(f"refused, nothing is written: the client of {kind} cannot run it: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no word'])[0]}"


def select_held_out(source: Source, tokens: int) -> tuple[Int[Tensor, "n seq"], Int[Tensor, "n *seq"]]:
    """About so many tokens of the validation split, and their targets; at least one sequence."""
    split = source.run.data.val
    length = split.inputs.shape[1]
    most = MAX_LOGITS // (length * source.model.embed.num_embeddings)
    count = min(len(split), max(1, min(-(-tokens // length), most)))
    return split[torch.linspace(0, len(split) - 1, count).round().long()]


def compare_distributions(
    reference: Float[Tensor, "n seq vocab"], logits: Float[Tensor, "n seq vocab"], targets: Int[Tensor, "n *seq"]
) -> tuple[float, float, float, float]:
    """Mean KL(reference || client) in nats, both perplexities, the share of positions with the same most likely symbol.

    The perplexity is that of the positions with a target: all, or the last one.
    """
    ours, theirs = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    divergence = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    if targets.ndim == 1:
        ours, theirs = ours[:, -1], theirs[:, -1]
    both = [F.nll_loss(p.flatten(0, -2), targets.flatten(), ignore_index=IGNORE).exp().item() for p in (ours, theirs)]
    return divergence, both[0], both[1], same


def count_different_codes(expected: Codes, actual: Codes) -> dict[str, int]:
    """How many codes are not the same, by layer; all of a layer that is not there or has another shape."""
    wrong: dict[str, int] = {}
    for name, (codes, _) in expected.items():
        there = actual[name][0] if name in actual else None
        same = there is not None and there.shape == codes.shape
        count = int((there != codes).sum()) if there is not None and same else codes.numel()
        wrong |= {name: count} if count else {}
    return wrong


def measure_scale_drift(expected: Codes, actual: Codes) -> float:
    """The largest share by which a step differs."""
    pairs = [(step.flatten(), actual[name][1].flatten()) for name, (_, step) in expected.items() if name in actual]
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        return math.inf
    return torch.stack([((b - a).abs() / a).max() for a, b in pairs]).max().item()  # of NaN it is NaN


@torch.no_grad()
def build_report(
    source: Source, result: ClientResult, tokens: Int[Tensor, "n seq"], targets: Int[Tensor, "n *seq"]
) -> dict[str, Any]:
    """The report: each check with its value, its bound and whether it holds."""
    divergence, reference, theirs, same = compare_distributions(source.model(tokens), result.logits, targets)
    expected = source.compute_codes()
    wrong = count_different_codes(expected, result.codes)
    checks = {
        "codes that differ": _check(sum(wrong.values()), 0, sum(codes.numel() for codes, _ in expected.values())),
        "scale": _check(measure_scale_drift(expected, result.codes), SCALE_TOLERANCE),
        "mean KL": _check(divergence, MAX_DIVERGENCE),
        "perplexity off by": _check(abs(theirs / reference - 1), MAX_PERPLEXITY_SHIFT)
        | {"reference": reference, "client": theirs},
        "top-1 agreement": {"value": same, "bound": None, "holds": True},
    }
    checks |= {name: {"value": holds, "bound": True, "holds": holds} for name, holds in result.extra_checks.items()}
    client = {name: version(name) for name in result.client.split()}
    return {"client": client, "tokens": tokens.numel(), "sequences": len(tokens), "checks": checks} | (
        {"layers that differ": wrong} if wrong else {}
    )


@torch.no_grad()
def build_stand_in(source: Source) -> Source:
    """The first two blocks with random weights: logits are far apart, attention looks somewhere, no norm or step is like
    another.
    """
    model = deepcopy(source.model)
    model.blocks = model.blocks[:2]
    random = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.uniform_(0.5, 1.5, generator=random)
        else:
            size = 2.0 if name in ("embed.weight", "head.weight") else 1 + torch.rand((), generator=random).item()
            p.normal_(std=size / math.sqrt(p.shape[1]), generator=random)
    return replace(source, model=model, linears=bitlinear_layers(model))


@torch.no_grad()
def check_stand_in(source: Source, result: ClientResult, tokens: Int[Tensor, "n seq"]) -> dict[str, Any]:
    """The checks on a stand-in, whose weights have no targets."""
    divergence, *_ = compare_distributions(source.model(tokens), result.logits, tokens)
    return {"stand-in's KL": _check(divergence, MAX_STAND_IN_DIVERGENCE)}


def _check(value: float | int, bound: float | int, of: int | None = None) -> dict[str, Any]:
    """A number that may be as large as its bound; NaN is too large."""
    return {"value": value, "bound": bound, "holds": value <= bound} | ({"of": of} if of else {})


def describe_failures(report: dict[str, Any]) -> str:
    """What does not hold, in a line; empty where all does."""
    wrong = []
    for name, check in report["checks"].items():
        if not check["holds"]:
            value, bound = check["value"], check["bound"]
            both = f" ({check['client']:.4g}, not {check['reference']:.4g})" if "client" in check else ""
            wrong.append(f"{name} {value:.3g}{both}, at most {bound:.3g}" if bound is not True else f"{name} does not hold")
    return "; ".join(wrong)


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file below."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = {
                "bytes": path.stat().st_size,
                "sha256": file_digest(file, "sha256").hexdigest(),
            }
    return found


def run_client(script: str, file: Path, tokens: Int[Tensor, "n seq"]) -> tuple[Float[Tensor, "n seq vocab"], str]:
    """Logits, and what is printed, by a script run as a user's would be: in a process that knows nothing of this package, and
    whose crash is not ours. It is given the file, where the tokens are, where the logits go, the threads, and the PROBE.

    Raises RuntimeError where it fails.
    """
    with TemporaryDirectory() as place:
        given, asked = Path(place, "tokens.npy"), Path(place, "logits.npy")
        np.save(given, tokens.numpy())
        command = [sys.executable, "-c", script, str(file.absolute()), str(given), str(asked), str(torch.get_num_threads())]
        done = subprocess.run([*command, json.dumps(PROBE)], cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise RuntimeError(f"{how}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        return torch.from_numpy(np.load(asked)), done.stdout
