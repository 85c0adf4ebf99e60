"""The model in operations that every program has: two bits a weight in the file, whole numbers in float32 as it runs."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from research.export.layout import Codes, Source, silence_libraries
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear

SHIFTS = (0, 2, 4, 6)


def pack_rows(codes: Int8[Tensor, "out in"]) -> UInt8[Tensor, "out bytes"]:
    """Codes + 1 at two bits each: byte b of a row holds inputs 4b to 4b + 3, the first in its lowest bits; the rest is 0."""
    full = F.pad(codes + 1, (0, -codes.shape[1] % 4)).to(torch.uint8).unflatten(1, (-1, 4))
    packed: Tensor = (full << torch.tensor(SHIFTS, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return packed


def build_code_table() -> Float[Tensor, "256 4"]:
    """The four codes that a byte holds."""
    return torch.tensor([[float((byte >> shift & 3) - 1) for shift in SHIFTS] for byte in range(256)])


def unpack_rows(
    packed: UInt8[Tensor, "out bytes"], code_table: Float[Tensor, "256 4"], in_features: int
) -> Float[Tensor, "out in"]:
    """Codes again, read from the table: exporters do not agree on shifts of bytes."""
    return F.embedding(packed.int(), code_table).flatten(1)[:, :in_features]


def pack_layer(layer: BitLinear) -> tuple[UInt8[Tensor, "out bytes"], Float[Tensor, "rows groups"]]:
    """A layer's codes, and its steps with one axis for outputs and one for groups of inputs, each of length 1 where shared."""
    codes, step = layer.quantizer.quantize_weight(layer.weight.detach())
    per = layer.quantizer.granularity
    scale = step.unflatten(1, (-1, per))[..., 0] if isinstance(per, int) else step.reshape(-1, 1)
    return pack_rows(codes.to(torch.int8)), scale


def expand_scale(scale: Float[Tensor, "rows groups"], in_features: int) -> Float[Tensor, "..."]:
    """Steps in the shape that the quantiser gives them."""
    if scale.shape[1] > 1:
        return scale.repeat_interleave(in_features // scale.shape[1], 1)
    return scale if scale.shape[0] > 1 else scale.reshape(())


class PlainLinear(nn.Module):
    """The forward of a BitLinear. The sums are exact below 2^24: up to 132,000 inputs."""

    packed: Tensor
    scale: Tensor
    codes: Tensor

    def __init__(self, layer: BitLinear, code_table: Float[Tensor, "256 4"]) -> None:
        super().__init__()
        packed, scale = pack_layer(layer)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("codes", code_table)  # one for all
        self.quantizer, self.in_features = layer.quantizer, layer.in_features

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        codes, step = self.quantizer.quantize_activation(x)
        weight = unpack_rows(self.packed, self.codes, self.in_features)
        if self.scale.shape[1] == 1:
            return F.linear(codes, weight) * (step * self.scale.t())
        weight = (weight.unflatten(1, (self.scale.shape[1], -1)) * self.scale.unsqueeze(-1)).flatten(1)
        return F.linear(codes * step, weight)


def build_plain_model(source: Source) -> Transformer:
    """The model with plain layers; everything else is float32 as it was trained."""
    model, codes = deepcopy(source.model), build_code_table()
    for name, layer in source.linears.items():
        model.set_submodule(name, PlainLinear(layer, codes))
    return model.eval()


def trace_model(source: Source) -> torch.export.ExportedProgram:
    """The plain model for any number of sequences of any length up to the model's, with no word of where it was made."""
    length = source.model.max_seq_len
    tokens = torch.zeros(2, min(2, length), dtype=torch.long)  # numbers above 1 stand for any
    shape = {0: torch.export.Dim("batch", min=1, max=1 << 20)}
    if length > 1:
        shape[1] = torch.export.Dim("seq", min=1, max=length)
    with silence_libraries(), torch.no_grad():
        program = torch.export.export(build_plain_model(source), (tokens,), dynamic_shapes={"tokens": shape})
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    return program


def read_codes(tensors: dict[str, Tensor], source: Source, packed: str = "packed", scale: str = "scale") -> Codes:
    """What a file holds, by the names that its tensors have after that of their layer."""
    found: Codes = {}
    for name, layer in source.linears.items():
        if f"{name}.{packed}" in tensors and f"{name}.{scale}" in tensors:
            codes = unpack_rows(tensors[f"{name}.{packed}"], build_code_table(), layer.in_features).to(torch.int8)
            found[name] = codes, expand_scale(tensors[f"{name}.{scale}"], layer.in_features)
    return found
