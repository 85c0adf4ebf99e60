"""safetensors: the numbers alone, for a program that somebody else writes. What they mean stands in the file's metadata.

The check is the reader below: numpy, the safetensors library, and nothing of the training code.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from research.export.layout import Options, Source
from research.export.plain import codes_of, compact
from research.export.verify import Seen

EXTRA, MODULES = "", ()
FILE = "model.safetensors"
LAYOUT = (
    "NAME.packed is uint8 [out, ceil(in / 4)]: byte b of a row holds inputs 4b to 4b + 3, the first in its lowest two bits, "
    "as code + 1, codes -1, 0, 1. NAME.scale is float32 [out or 1, groups or 1], a group being in / groups inputs: "
    "weight = code * scale. All else is float32; head.weight is embed.weight where there is none."
)
Numbers = dict[str, ndarray]


def write(source: Source, folder: Path, options: Options) -> list[str]:
    """model.safetensors, with the sizes, the rounding of activations and the layout as its metadata."""
    from safetensors.torch import save_file

    tensors = {name: p.detach() for name, p in source.model.named_parameters()}  # a tied head is there once
    for name, layer in source.linears.items():
        del tensors[f"{name}.weight"]
        tensors[f"{name}.packed"], tensors[f"{name}.scale"] = compact(layer)
    rounding = asdict(next(iter(source.linears.values())).quantizer)
    metadata = {"format": "grokbit", "layout": LAYOUT, "model": json.dumps(source.numbers), "rounding": json.dumps(rounding)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)
    return []


def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> Seen:
    from safetensors import safe_open

    with safe_open(folder / FILE, "np") as file:
        metadata = {key: json.loads(file.metadata()[key]) for key in ("model", "rounding")}
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    with np.errstate(over="ignore"):  # exp of a large number, which is divided by
        logits = run(held, metadata["model"], metadata["rounding"], tokens.numpy())
    return Seen(
        "safetensors numpy", codes_of({k: torch.from_numpy(v) for k, v in held.items()}, source), torch.from_numpy(logits)
    )


def run(held: Numbers, model: dict[str, Any], rounding: dict[str, Any], tokens: ndarray) -> ndarray:
    """Logits of the next symbol. Shapes: tokens [n, seq], logits [n, seq, vocab]."""
    length, width = tokens.shape[1], model["dim"] // model["heads"]
    angle = np.arange(length)[:, None] * model["rope_base"] ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    angle = angle.astype(np.float32)
    x = held["embed.weight"][tokens]
    for number in range(model["depth"]):
        inside = {k.removeprefix(f"blocks.{number}."): v for k, v in held.items() if k.startswith(f"blocks.{number}.")}
        x = x + _attention(_norm(x, inside["input_norm.weight"], model["eps"]), inside, model, rounding, angle)
        x = x + _feedforward(_norm(x, inside["post_norm.weight"], model["eps"]), inside, model, rounding)
    head = held["embed.weight"] if model["tied"] else held["head.weight"]
    return np.asarray(_norm(x, held["norm.weight"], model["eps"]) @ head.T)


def _norm(x: ndarray, weight: ndarray, eps: float) -> ndarray:
    return np.asarray(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight)


def _linear(x: ndarray, held: Numbers, name: str, rounding: dict[str, Any]) -> ndarray:
    """Whole numbers times whole numbers, then the two steps."""
    axis = -1 if rounding["activation_per"] == "token" else None
    if rounding["activation_bits"] == 8:
        size = np.maximum(np.abs(x).max(axis, keepdims=True), np.float32(1e-5))
        x, step = np.round(x * (np.float32(127) / size)), size / np.float32(127)
    else:
        root = np.float32(math.sqrt(7))
        size = np.maximum(np.abs(x).mean(axis, keepdims=True), np.float32(1e-5))
        x, step = np.round(x * (root / size)).clip(-8, 7), size / root
    packed, scale = held[f"{name}.packed"], held[f"{name}.scale"]
    pairs = packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    codes = pairs.reshape(len(packed), -1)[:, : x.shape[-1]].astype(np.float32) - 1
    if scale.shape[1] == 1:
        return np.asarray(x @ codes.T * (step * scale.T))
    return np.asarray((x * step) @ (codes * np.repeat(scale, x.shape[-1] // scale.shape[1], 1)).T)


def _attention(x: ndarray, held: Numbers, model: dict[str, Any], rounding: dict[str, Any], angle: ndarray) -> ndarray:
    """Shapes: x [n, seq, dim]; q, k, v [n, heads, seq, width]."""
    cos, sin, shared = np.cos(angle), np.sin(angle), model["heads"] // model["kv_heads"]

    def heads(name: str, count: int) -> ndarray:
        y = _linear(x, held, f"attention.{name}", rounding)
        return np.asarray(y.reshape(*y.shape[:2], count, -1).swapaxes(1, 2))

    def turned(y: ndarray) -> ndarray:
        a, b = np.split(y, 2, -1)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)

    q = turned(heads("q_proj", model["heads"]))
    k = turned(heads("k_proj", model["kv_heads"])).repeat(shared, 1)
    v = heads("v_proj", model["kv_heads"]).repeat(shared, 1)
    score = q @ k.swapaxes(-1, -2) / np.float32(math.sqrt(q.shape[-1]))
    score = np.where(np.tri(x.shape[1], dtype=bool), score, -np.inf)
    share = np.exp(score - score.max(-1, keepdims=True))
    y = (share / share.sum(-1, keepdims=True)) @ v
    y = y.swapaxes(1, 2).reshape(x.shape)
    if model["sub_norm"]:
        y = _norm(y, held["attention.attn_sub_norm.weight"], model["eps"])
    return _linear(y, held, "attention.o_proj", rounding)


def _feedforward(x: ndarray, held: Numbers, model: dict[str, Any], rounding: dict[str, Any]) -> ndarray:
    gate, up = (_linear(x, held, f"feedforward.{name}_proj", rounding) for name in ("gate", "up"))
    y = (np.square(np.maximum(gate, 0)) if model["act"] == "relu2" else gate / (1 + np.exp(-gate))) * up
    if model["sub_norm"]:
        y = _norm(y, held["feedforward.ffn_sub_norm.weight"], model["eps"])
    return _linear(y, held, "feedforward.down_proj", rounding)
