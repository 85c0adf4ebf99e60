"""safetensors: the tensors alone, for a program that somebody else writes; the file's metadata explains them.

The check is the reader below, which uses numpy and the safetensors library and nothing of the training code.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from research.contracts import contract
from research.export.layout import Options, Source
from research.export.plain import pack_rows, read_codes
from research.export.verify import Client, ClientResult

MODULES, FILE = (), "model.safetensors"
LAYOUT = (
    "NAME.packed is uint8 [out, ceil(in / 4)]: byte b of a row holds inputs 4b to 4b + 3, the first in its lowest two bits, "
    "as code + 1, codes -1, 0, 1. NAME.scale is float32 [out or 1, groups or 1], a group being in / groups inputs: "
    "weight = code * scale. All else is float32; head.weight is embed.weight where there is none."
)


@contract
def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write model.safetensors; its metadata holds the sizes, the settings of the quantizer and the layout."""
    source.require_format("safetensors")
    tensors: dict[str, Tensor] = dict(source.model.named_parameters())  # each once: a tied head is the embedding
    for name, (codes, scale) in source.compute_codes().items():
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.packed": pack_rows(codes), f"{name}.scale": scale}
    # All layers have the same quantizer; in full precision there is none.
    quantizer = next((asdict(layer.quantizer) for layer in source.linears.values()), {})
    model, rounding = json.dumps(source.architecture), json.dumps(quantizer)
    metadata = {"format": "grokbit", "layout": LAYOUT, "model": model, "rounding": rounding}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)
    return []


@contract
def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """Run the file with the reader below."""
    reader = open_reader(folder)
    logits = reader.compute_logits(tokens.numpy())
    codes = read_codes({name: torch.from_numpy(array) for name, array in reader.arrays.items()}, source)
    return ClientResult("safetensors numpy", codes, torch.from_numpy(logits))


@contract
def open_client(folder: Path) -> Client:
    """Return the reader with the folder's file."""
    reader = open_reader(folder)
    return lambda tokens: torch.from_numpy(reader.compute_logits(tokens.numpy()))


def open_reader(folder: Path) -> "Reader":
    """Return the model in the folder."""
    with safe_open(folder / FILE, "np") as file:
        metadata = {key: json.loads(file.metadata()[key]) for key in ("model", "rounding")}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    return Reader(arrays, **metadata)


@contract
@dataclass(frozen=True)
class Reader:
    """The model of a file, in float32 throughout as in training. Methods take the names of layers and norms in the file."""

    arrays: dict[str, ndarray]
    model: dict[str, Any]
    rounding: dict[str, Any]

    def compute_logits(self, tokens: ndarray) -> ndarray:
        """Return logits [n, seq, vocab or classes] for tokens [n, seq]. Raise IndexError for a negative token."""
        if tokens.min(initial=0) < 0:
            raise IndexError(f"token {tokens.min()}: the vocabulary is 0 to {self.model['vocab'] - 1}")
        head_dim = self.model["dim"] // self.model["heads"]
        frequency = self.model["rope_base"] ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        is_end = tokens == self.model.get("end", -1)  # the last token of its document
        document = is_end.cumsum(1) - is_end
        sees = (document[:, :, None] == document[:, None]) & np.tri(tokens.shape[1], dtype=bool)  # [n, seq, seq]
        angle = ((sees.sum(-1) - 1)[..., None] * frequency).astype(np.float32)  # numpy would continue in float64
        x = self.arrays["embed.weight"][tokens]
        for number in range(self.model["depth"]):
            block = f"blocks.{number}"
            x = x + self.attend(self.normalize(x, f"{block}.input_norm"), f"{block}.attention", angle, sees)
            x = x + self.feed_forward(self.normalize(x, f"{block}.post_norm"), f"{block}.feedforward")
        head = self.arrays["embed.weight" if self.model["tied"] else "head.weight"]
        return np.asarray(self.normalize(x, "norm") @ head.T)

    def normalize(self, x: ndarray, name: str) -> ndarray:
        """Return x / sqrt(mean(x^2) + eps) * weight; x where the model has no such norm."""
        if f"{name}.weight" not in self.arrays:
            return x
        mean = np.square(x).mean(-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + np.float32(self.model["eps"])) * self.arrays[f"{name}.weight"])

    def multiply(self, x: ndarray, name: str) -> ndarray:
        """Return the product of integer activations and codes, times both scales; in full precision that with the weight."""
        if f"{name}.weight" in self.arrays:
            return np.asarray(x @ self.arrays[f"{name}.weight"].T)
        axis = -1 if self.rounding["activation_granularity"] == "token" else None
        if self.rounding["activation_bits"] == 8:
            size = np.maximum(np.abs(x).max(axis, keepdims=True), np.float32(1e-5))
            x, x_scale = np.round(x * (np.float32(127) / size)), size / np.float32(127)
        else:  # 4 bits (2411.04965, section 2): the scale is from the mean, values beyond are clipped
            root = np.float32(math.sqrt(7))
            size = np.maximum(np.abs(x).mean(axis, keepdims=True), np.float32(1e-5))
            x, x_scale = np.round(x * (root / size)).clip(-8, 7), size / root
        packed, scale = self.arrays[f"{name}.packed"], self.arrays[f"{name}.scale"]
        pairs = packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
        codes = pairs.reshape(len(packed), -1)[:, : x.shape[-1]].astype(np.float32) - 1
        # With one scale a row the sum is of integers, and exact.
        if scale.shape[1] == 1:
            return np.asarray(x @ codes.T * (x_scale * scale.T))
        return np.asarray((x * x_scale) @ (codes * np.repeat(scale, x.shape[-1] // scale.shape[1], 1)).T)

    def attend(self, x: ndarray, name: str, angle: ndarray, sees: ndarray) -> ndarray:
        """Return attention of x [n, seq, dim] to what `sees` has; q, k, v are [n, heads, seq, head_dim]."""
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

        def project_heads(layer: str, heads: int) -> ndarray:
            y = self.multiply(x, f"{name}.{layer}")
            return np.asarray(y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2))

        def rotate(y: ndarray) -> ndarray:
            a, b = np.split(y, 2, -1)
            return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)

        heads, kv_heads = self.model["heads"], self.model["kv_heads"]
        q = rotate(project_heads("q_proj", heads))
        k = rotate(project_heads("k_proj", kv_heads)).repeat(heads // kv_heads, 1)
        v = project_heads("v_proj", kv_heads).repeat(heads // kv_heads, 1)
        score = q @ k.swapaxes(-1, -2) / np.float32(math.sqrt(q.shape[-1]))
        score = np.where(sees[:, None], score, -np.inf)
        # The largest score is subtracted, or exp would overflow.
        share = np.exp(score - score.max(-1, keepdims=True))
        y = (share / share.sum(-1, keepdims=True)) @ v
        return self.multiply(self.normalize(y.swapaxes(1, 2).reshape(x.shape), f"{name}.attn_sub_norm"), f"{name}.o_proj")

    def feed_forward(self, x: ndarray, name: str) -> ndarray:
        """Return the gated layer of x [n, seq, dim]."""
        gate, up = (self.multiply(x, f"{name}.{layer}") for layer in ("gate_proj", "up_proj"))
        with np.errstate(over="ignore"):  # SiLU divides by exp(-x), which may be infinite
            y = (np.square(np.maximum(gate, 0)) if self.model["act"] == "relu2" else gate / (1 + np.exp(-gate))) * up
        return self.multiply(self.normalize(y, f"{name}.ffn_sub_norm"), f"{name}.down_proj")
