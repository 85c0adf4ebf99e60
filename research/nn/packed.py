"""Ternary layers as they run: two bits a weight in memory, activations int8 per token; embedding and head in int8.

All give the bits of `BitLinear`; `native` off: through plain operators of torch, which other programs' exporters know.
"""

import copy
import mmap
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.quantize import Quantizer
from research.nn.tiles import INS, OUTS, int8_linear, pack, ternary_linear

CACHE_LINE, HUGE_PAGE = 64, 1 << 21  # bytes of a cache line, of a large page
PACKABLE_SETTINGS: dict[str, tuple[float | str, ...]] = {  # settings of a Quantizer
    "weight_bits": (1, 1.58),
    "granularity": ("tensor", "channel"),
    "activation_bits": (8,),
    "activation_granularity": ("token",),
}
INT8 = Quantizer("absmax", 8, "channel")  # of embedding and head: a step a symbol


class PackedLinear(nn.Module):
    """A ternary `BitLinear` at two bits a weight. Only for inference: C gives no gradient."""

    codes: UInt8[Tensor, "tiles_out tiles_in 256"]
    step: Float[Tensor, "out"]
    bias: Float[Tensor, "out"] | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, native: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.native = in_features, out_features, native
        tiles = -(-out_features // OUTS), -(-in_features // INS)
        self.register_buffer("codes", torch.full((*tiles, 256), 0b01010101, dtype=torch.uint8))
        self.register_buffer("step", torch.zeros(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    @torch.no_grad()
    def from_bitlinear(cls, layer: BitLinear, name: str = "a layer") -> "PackedLinear":
        """The same layer, packed. Raises ValueError, naming the layer, where two bits cannot hold it."""
        check_packable(layer.quantizer, name)
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        packed.in_features, packed.out_features, packed.native = layer.in_features, layer.out_features, True
        codes, step = layer.quantizer.quantize_weight(layer.weight.float())
        packed.register_buffer("codes", pack(codes.nan_to_num(0.0)))  # its step is not finite either
        packed.register_buffer("step", step.reshape(-1).expand(layer.out_features).contiguous())
        packed.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        return packed

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"{x.shape[-1]} inputs; this layer has {self.in_features}")
        product = torch.ops.grokbit.ternary_linear if self.native else ternary_linear
        y: Tensor = product(x, self.codes, self.step)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def check_packable(quantizer: Quantizer, name: str) -> None:
    """Raises ValueError for roundings that a packed layer does not compute."""
    for setting, good in PACKABLE_SETTINGS.items():
        if (value := getattr(quantizer, setting)) not in good:
            raise ValueError(
                f"pack: {name} has linear.{setting}={value}; a packed layer holds {' or '.join(map(str, good))}: "
                "train with that, or run the model as it is"
            )


class Int8Table(nn.Module):
    """One row of int8 a symbol, filled up to whole tiles, and its step: the weights of an embedding, a head, or both."""

    codes: Int8[Tensor, "rows padded"]
    step: Float[Tensor, "rows"]

    @torch.no_grad()
    def __init__(self, weight: Float[Tensor, "rows dim"]) -> None:
        super().__init__()
        self.dim = weight.shape[1]
        codes, step = INT8.quantize_weight(weight.float())
        codes = F.pad(codes.nan_to_num(0.0), (0, -self.dim % INS))
        self.register_buffer("codes", codes.to(torch.int8).contiguous())
        self.register_buffer("step", step.reshape(-1).contiguous())


class Int8Embedding(nn.Module):
    """`nn.Embedding` in int8."""

    def __init__(self, table: Int8Table) -> None:
        super().__init__()
        self.table, self.num_embeddings = table, len(table.step)

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        codes, step = self.table.codes[tokens], self.table.step[tokens]
        return codes[..., : self.table.dim].to(step.dtype) * step.unsqueeze(-1)


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights, a step an output, and int8 activations per token. `native` as in `PackedLinear`."""

    bias: Float[Tensor, "out"] | None

    def __init__(self, table: Int8Table, bias: Tensor | None = None, native: bool = True) -> None:
        super().__init__()
        self.table, self.native = table, native
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if x.shape[-1] != self.table.dim:
            raise ValueError(f"{x.shape[-1]} inputs; this layer has {self.table.dim}")
        product = torch.ops.grokbit.int8_linear if self.native else int8_linear
        y: Tensor = product(x, self.table.codes, self.table.step)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def pack_model(model: nn.Module, int8_embeddings: bool = True) -> nn.Module:
    """A copy for inference: each BitLinear packed, embeddings and heads in int8; what is tied stays tied.

    No float copy of a packed weight is made. Raises ValueError where there is no BitLinear, or one cannot be packed.
    """
    bits = bitlinear_layers(model)
    if not bits:
        raise ValueError("pack: the model has no BitLinear; train one with model=bitnet, or convert a model to BitLinears")
    instead: dict[int, nn.Module] = {id(layer): PackedLinear.from_bitlinear(layer, name) for name, layer in bits.items()}
    if int8_embeddings:
        tables: dict[int, Int8Table] = {}
        for layer in find_symbol_layers(model):
            if (table := tables.get(id(layer.weight))) is None:
                table = tables[id(layer.weight)] = Int8Table(layer.weight)
            instead[id(layer)] = Int8Embedding(table) if isinstance(layer, nn.Embedding) else Int8Linear(table, layer.bias)
    packed = copy.deepcopy(model, dict(instead))  # deepcopy takes what its memo has for a module in its place
    instead.clear()
    move_to_huge_pages(packed)
    return packed.eval().requires_grad_(False)


def move_to_huge_pages(model: nn.Module) -> None:
    """Move the packed weights side by side into memory of large pages, where the system has them: a product of one row
    reads them from one end to the other, and does so a third faster than from pages of 4 kB.
    """
    if sys.platform != "linux":
        return
    owners = [module for module in model.modules() if isinstance(module, PackedLinear | Int8Table)]
    starts = list(accumulate((-(-owner.codes.nbytes // CACHE_LINE) * CACHE_LINE for owner in owners), initial=0))
    if starts[-1] < HUGE_PAGE or any(owner.codes.device.type != "cpu" for owner in owners):
        return
    room = mmap.mmap(-1, starts[-1] + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    skip = -torch.frombuffer(room, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    for owner, start in zip(owners, starts, strict=False):
        old = owner.codes
        new = torch.frombuffer(room, dtype=old.dtype, count=old.numel(), offset=skip + start).view(old.shape)
        owner.codes = new.copy_(old)


def find_symbol_layers(model: nn.Module) -> Iterator[nn.Embedding | nn.Linear]:
    """The embeddings of a model, and the linears that are tied to one or called a head."""
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        linear = type(module) is nn.Linear and (id(module.weight) in tied or name.rpartition(".")[2] in ("head", "lm_head"))
        if linear or type(module) is nn.Embedding:
            yield module


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """The packed layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def count_packed_bytes(model: nn.Module) -> int:
    """The size of a model's weights as `pack_model` packs them; a layer that it refuses counts in float32."""
    bits = [
        b
        for b in bitlinear_layers(model).values()
        if all(getattr(b.quantizer, name) in good for name, good in PACKABLE_SETTINGS.items())
    ]
    tables = {id(layer.weight): layer.weight for layer in find_symbol_layers(model)}
    apart = tables.keys() | {id(layer.weight) for layer in bits}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in apart)
    ternary = sum(-(-b.out_features // OUTS) * -(-b.in_features // INS) * 256 + 4 * b.out_features for b in bits)
    int8 = sum(weight.shape[0] * (-(-weight.shape[1] // INS) * INS + 4) for weight in tables.values())
    return ternary + int8 + 4 * rest
