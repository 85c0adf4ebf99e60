"""The model in operations that every runtime has: two bits a weight in the file, codes as float32 when it runs."""

from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from research.contracts import contract
from research.export.layout import Codes, Source, quantize_layer
from research.files.silence import silence_libraries
from research.models.hub import Hub
from research.nn.bitlinear import BitLinear

SHIFTS = (0, 2, 4, 6)


@contract
def pack_rows(codes: Int8[Tensor, "out in"]) -> UInt8[Tensor, "out bytes"]:
    """Return codes + 1 at two bits each; byte b of a row holds inputs 4b to 4b + 3, the first in its lowest bits."""
    full = F.pad(codes + 1, (0, -codes.shape[1] % 4)).to(torch.uint8).unflatten(1, (-1, 4))
    return torch.sum(full << torch.tensor(SHIFTS, dtype=torch.uint8), -1, dtype=torch.uint8)


def build_code_table() -> Float[Tensor, "256 4"]:
    """Return the four codes that each byte holds."""
    return torch.tensor([[float((byte >> shift & 3) - 1) for shift in SHIFTS] for byte in range(256)])


def unpack_rows(packed: UInt8[Tensor, "out bytes"], table: Float[Tensor, "256 4"], in_features: int) -> Float[Tensor, "out in"]:
    """Return the codes of packed rows, from a table: exporters differ in how they shift bytes."""
    return F.embedding(packed.int(), table).flatten(1)[:, :in_features]


class PlainLinear(nn.Module):
    """A BitLinear in plain operations. Its float32 sums of integers are exact below 2^24: up to 132,000 inputs."""

    packed: Tensor
    scale: Tensor
    codes: Tensor

    def __init__(self, layer: BitLinear, code_table: Float[Tensor, "256 4"]) -> None:
        super().__init__()
        codes, scale = quantize_layer(layer)
        self.register_buffer("packed", pack_rows(codes))
        self.register_buffer("scale", scale)
        self.register_buffer("codes", code_table)  # one tensor, shared by all layers
        self.quantizer, self.in_features, self.bias = layer.quantizer, layer.in_features, layer.bias

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        codes, scale = self.quantizer.quantize_activation(x)
        weight = unpack_rows(self.packed, self.codes, self.in_features)
        if self.scale.shape[1] == 1:
            y = F.linear(codes, weight) * (scale * self.scale.t())
            return y if self.bias is None else y + self.bias
        # Scales by group of inputs are inside the sum: the weights get them before it.
        weight = (weight.unflatten(1, (self.scale.shape[1], -1)) * self.scale.unsqueeze(-1)).flatten(1)
        return F.linear(codes * scale, weight, self.bias)


class PlainEmbedding(nn.Module):
    """An embedding that refuses negative tokens in every runtime: in ONNX, -1 would be the last symbol."""

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.weight = embed.weight

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        return F.embedding(torch.where(tokens < 0, len(self.weight), tokens), self.weight)


def build_plain_model(source: Source) -> nn.Module:
    """Return a copy of the model with plain ternary layers; everything else stays float32 as it was trained."""
    model: nn.Module = deepcopy(source.model)
    codes = build_code_table()
    for name, layer in source.linears.items():
        model.set_submodule(name, PlainLinear(layer, codes))
    inputs = source.net.get_input_embeddings() if isinstance(source.model, Hub) else source.model.embed
    for name, module in source.model.named_modules():
        if module is inputs and type(module) is nn.Embedding:
            model.set_submodule(name, PlainEmbedding(cast(nn.Embedding, model.get_submodule(name))))  # a tied head shares it
    return model.eval()


@contract
def trace_model(source: Source) -> torch.export.ExportedProgram:
    """Return the plain model, traced for any number of samples, and sequences of any length up to the model's.

    The traces and names of source files are removed, as they show paths of this machine.
    """
    _, example = source.inputs
    # An axis without a Dim is fixed: a model of one position has no dynamic length.
    shape = {0: torch.export.Dim("batch", min=1, max=1 << 20)}
    if source.reads_tokens and (max_seq_len := source.max_seq_len) > 1:
        shape[1] = torch.export.Dim("seq", min=1, max=max_seq_len)
    with silence_libraries(), torch.no_grad():
        program = torch.export.export(build_plain_model(source), (example,), dynamic_shapes=(shape,))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    return program


@contract
def read_codes(tensors: dict[str, Tensor], source: Source) -> Codes:
    """Return the codes and scales in a file, whose tensors are named LAYER.packed and LAYER.scale."""
    result: Codes = {}
    for name, layer in source.linears.items():
        if f"{name}.packed" in tensors:
            codes = unpack_rows(tensors[f"{name}.packed"], build_code_table(), layer.in_features)
            result[name] = codes.to(torch.int8), tensors[f"{name}.scale"]
    return result
