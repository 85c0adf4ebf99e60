"""safetensors: the tensors alone, for a program that somebody else writes; the file's metadata explains them.

The check is the reader below, which uses numpy and the safetensors library and nothing of the training code.
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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from research.export.layout import Options, Source
from research.export.plain import pack_layer, read_codes
from research.export.verify import ClientResult

MODULES, FILE = (), "model.safetensors"
LAYOUT = (
    "NAME.packed is uint8 [out, ceil(in / 4)]: byte b of a row holds inputs 4b to 4b + 3, the first in its lowest two bits, "
    "as code + 1, codes -1, 0, 1. NAME.scale is float32 [out or 1, groups or 1], a group being in / groups inputs: "
    "weight = code * scale. All else is float32; head.weight is embed.weight where there is none."
)
Arrays = dict[str, ndarray]


def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write model.safetensors; its metadata holds the sizes, the settings of the quantizer and the layout."""
    tensors: dict[str, Tensor] = dict(source.model.named_parameters())  # each once: a tied head is the embedding
    for name, layer in source.linears.items():
        del tensors[f"{name}.weight"]
        tensors[f"{name}.packed"], tensors[f"{name}.scale"] = pack_layer(layer)
    quantizer = next(iter(source.linears.values())).quantizer  # all layers have the same
    model, rounding = json.dumps(source.architecture), json.dumps(asdict(quantizer))
    metadata = {"format": "grokbit", "layout": LAYOUT, "model": model, "rounding": rounding}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)
    return []


def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """Run the file with the reader below."""
    with safe_open(folder / FILE, "np") as file:
        metadata = {key: json.loads(file.metadata()[key]) for key in ("model", "rounding")}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    with np.errstate(over="ignore"):  # SiLU divides by exp(-x), which may be infinite
        logits = run(arrays, metadata["model"], metadata["rounding"], tokens.numpy())
    codes = read_codes({name: torch.from_numpy(array) for name, array in arrays.items()}, source)
    return ClientResult("safetensors numpy", codes, torch.from_numpy(logits))


def run(arrays: Arrays, model: dict[str, Any], quantization: dict[str, Any], tokens: ndarray) -> ndarray:
    """Return logits [n, seq, vocab] of the next token for tokens [n, seq]."""
    seq_len, head_dim = tokens.shape[1], model["dim"] // model["heads"]
    angle = np.arange(seq_len)[:, None] * model["rope_base"] ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    # float32 throughout, as in training: numpy would continue in float64.
    angle = angle.astype(np.float32)
    x = arrays["embed.weight"][tokens]
    for number in range(model["depth"]):
        prefix = f"blocks.{number}."
        block = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        x = x + _attention(_rms_norm(x, block["input_norm.weight"], model["eps"]), block, model, quantization, angle)
        x = x + _feedforward(_rms_norm(x, block["post_norm.weight"], model["eps"]), block, model, quantization)
    head = arrays["embed.weight"] if model["tied"] else arrays["head.weight"]
    return np.asarray(_rms_norm(x, arrays["norm.weight"], model["eps"]) @ head.T)


def _rms_norm(x: ndarray, weight: ndarray, eps: float) -> ndarray:
    return np.asarray(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight)


def _linear(x: ndarray, arrays: Arrays, name: str, quantization: dict[str, Any]) -> ndarray:
    """Return the product of integer activations and codes, times both scales."""
    axis = -1 if quantization["activation_granularity"] == "token" else None
    if quantization["activation_bits"] == 8:
        size = np.maximum(np.abs(x).max(axis, keepdims=True), np.float32(1e-5))
        x, x_scale = np.round(x * (np.float32(127) / size)), size / np.float32(127)
    else:  # 4 bits (2411.04965, section 2): the scale is from the mean, values beyond are clipped
        root = np.float32(math.sqrt(7))
        size = np.maximum(np.abs(x).mean(axis, keepdims=True), np.float32(1e-5))
        x, x_scale = np.round(x * (root / size)).clip(-8, 7), size / root
    packed, scale = arrays[f"{name}.packed"], arrays[f"{name}.scale"]
    pairs = packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    codes = pairs.reshape(len(packed), -1)[:, : x.shape[-1]].astype(np.float32) - 1
    # With one scale a row the sum is of integers, and exact.
    if scale.shape[1] == 1:
        return np.asarray(x @ codes.T * (x_scale * scale.T))
    return np.asarray((x * x_scale) @ (codes * np.repeat(scale, x.shape[-1] // scale.shape[1], 1)).T)


def _attention(x: ndarray, arrays: Arrays, model: dict[str, Any], quantization: dict[str, Any], angle: ndarray) -> ndarray:
    """Return causal attention of x [n, seq, dim]; q, k, v are [n, heads, seq, head_dim]."""
    cos, sin, queries_per_key = np.cos(angle), np.sin(angle), model["heads"] // model["kv_heads"]

    def project_heads(name: str, count: int) -> ndarray:
        y = _linear(x, arrays, f"attention.{name}", quantization)
        return np.asarray(y.reshape(*y.shape[:2], count, -1).swapaxes(1, 2))

    def rotate(y: ndarray) -> ndarray:
        a, b = np.split(y, 2, -1)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)

    q = rotate(project_heads("q_proj", model["heads"]))
    k = rotate(project_heads("k_proj", model["kv_heads"])).repeat(queries_per_key, 1)
    v = project_heads("v_proj", model["kv_heads"]).repeat(queries_per_key, 1)
    score = q @ k.swapaxes(-1, -2) / np.float32(math.sqrt(q.shape[-1]))
    score = np.where(np.tri(x.shape[1], dtype=bool), score, -np.inf)
    # The largest score is subtracted, or exp would overflow.
    share = np.exp(score - score.max(-1, keepdims=True))
    y = (share / share.sum(-1, keepdims=True)) @ v
    y = y.swapaxes(1, 2).reshape(x.shape)
    if model["sub_norm"]:
        y = _rms_norm(y, arrays["attention.attn_sub_norm.weight"], model["eps"])
    return _linear(y, arrays, "attention.o_proj", quantization)


def _feedforward(x: ndarray, arrays: Arrays, model: dict[str, Any], quantization: dict[str, Any]) -> ndarray:
    gate, up = (_linear(x, arrays, f"feedforward.{name}_proj", quantization) for name in ("gate", "up"))
    y = (np.square(np.maximum(gate, 0)) if model["act"] == "relu2" else gate / (1 + np.exp(-gate))) * up
    if model["sub_norm"]:
        y = _rms_norm(y, arrays["feedforward.ffn_sub_norm.weight"], model["eps"])
    return _linear(y, arrays, "feedforward.down_proj", quantization)
