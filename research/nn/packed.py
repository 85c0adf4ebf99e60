"""Pack ternary layers for inference: two bits a weight, int8 activations per token, embedding and head in int8.

All layers give the same bits as `BitLinear`. With `native` off they use plain operators of torch, which every exporter knows.
"""

import copy
import mmap
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from research.contracts import contract
from research.nn.bitlinear import BitLinear, bitlinear_layers, has_hooks
from research.nn.quantize import Quantizer
from research.nn.tiles import INS, OUTS, Tiles, int8_linear, multiply, pack, ternary_linear

CACHE_LINE, HUGE_PAGE = 64, 1 << 21  # bytes
PACKABLE_SETTINGS: dict[str, tuple[float | str, ...]] = {  # of a Quantizer: what the kernels compute
    "weight_bits": (1, 1.58),
    "granularity": ("tensor", "channel"),
    "activation_bits": (8,),
    "activation_granularity": ("token",),
}
INT8 = Quantizer("absmax", 8, "channel")  # of embedding and head: a scale a symbol


class PackedLinear(nn.Module):
    """A ternary `BitLinear` at two bits a weight, which do not learn. The gradient of the input is straight-through."""

    codes: Tiles
    scale: Float[Tensor, "out"]
    bias: Float[Tensor, "out"] | None

    @contract
    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.native = in_features, out_features, True
        tiles = -(-out_features // OUTS), -(-in_features // INS)
        self.register_buffer("codes", torch.full((*tiles, 256), 0b01010101, dtype=torch.uint8))  # all zero
        self.register_buffer("scale", torch.zeros(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    @torch.no_grad()
    def from_bitlinear(cls, layer: BitLinear, name: str = "a layer") -> "PackedLinear":
        """Return the layer, packed. Raise ValueError, with the name of the layer, if a packed layer cannot compute it."""
        require_plain(layer, name)
        if reason := explain_unpackable(layer.quantizer):
            raise ValueError(f"pack: {name} has {reason}: train with that, or run the model unpacked")
        packed = cls(layer.in_features, layer.out_features)
        codes, scale = layer.quantizer.quantize_weight(layer.weight.float())
        packed.codes = pack(codes.nan_to_num(0.0))  # where the scale is not finite either
        packed.scale = scale.reshape(-1).expand(layer.out_features).contiguous()
        packed.bias = None if layer.bias is None else layer.bias.detach().clone()
        return packed

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} features, this layer takes {self.in_features}")
        product = torch.ops.grokbit.ternary_linear if self.native else ternary_linear
        y = multiply(product, x, self.codes, self.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def require_plain(layer: nn.Module, name: str) -> None:
    """Raise ValueError, with the name of a layer, if it computes more than its class does: a packed one would not."""
    if type_before_parametrizations(layer) not in (BitLinear, nn.Linear, nn.Embedding):
        reason = f"is a {type(layer).__name__}, which may compute something else"
    elif has_hooks(layer) or "forward" in vars(layer):
        reason = "has hooks, or a forward of its own"
    elif isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        reason = f"has max_norm={layer.max_norm}, which changes its weights"
    else:
        return
    raise ValueError(
        f"pack: {name} {reason}: a packed layer would lose that; put it into the weights, or run the model unpacked"
    )


def explain_unpackable(quantizer: Quantizer) -> str:
    """Return a setting of a quantizer that a packed layer does not compute, and what it needs; an empty string if none."""
    for setting, allowed in PACKABLE_SETTINGS.items():
        if (value := getattr(quantizer, setting)) not in allowed:
            return f"linear.{setting}={value}; a packed layer needs {' or '.join(map(str, allowed))}"
    return ""


class Int8Table(nn.Module):
    """The int8 weights of an embedding, a head, or both: one row a symbol, padded to whole tiles, and its scale."""

    codes: Int8[Tensor, "rows padded"]
    scale: Float[Tensor, "rows"]

    @torch.no_grad()
    @contract
    def __init__(self, weight: Float[Tensor, "rows dim"]) -> None:
        super().__init__()
        self.dim = weight.shape[1]
        codes, scale = INT8.quantize_weight(weight.float())
        codes = F.pad(codes.nan_to_num(0.0), (0, -self.dim % INS))
        self.register_buffer("codes", codes.to(torch.int8).contiguous())
        self.register_buffer("scale", scale.reshape(-1).contiguous())


class Int8Embedding(nn.Module):
    """`nn.Embedding` in int8."""

    @contract
    def __init__(self, table: Int8Table) -> None:
        super().__init__()
        self.table, self.num_embeddings = table, len(table.scale)

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        # no indexing: there -1 is the last symbol, and numbers of 8 bits are a mask
        codes, scale = F.embedding(tokens, self.table.codes), self.table.scale[tokens]
        return codes[..., : self.table.dim].to(scale.dtype) * scale.unsqueeze(-1)


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights, a scale an output, and int8 activations per token. `native` as in `PackedLinear`."""

    bias: Float[Tensor, "out"] | None

    @contract
    def __init__(self, table: Int8Table, bias: Tensor | None = None) -> None:
        super().__init__()
        self.table, self.native = table, True
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if x.shape[-1] != self.table.dim:
            raise ValueError(f"the input has {x.shape[-1]} features, this layer takes {self.table.dim}")
        product = torch.ops.grokbit.int8_linear if self.native else int8_linear
        y = multiply(product, x, self.table.codes, self.table.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)


@contract
def pack_model(model: nn.Module, int8_embeddings: bool = True) -> nn.Module:
    """Return a copy for inference: each BitLinear packed, embeddings and heads in int8; tied weights stay tied.

    The copy holds no float weight of a packed layer. Raise ValueError if there is no BitLinear, or one cannot be packed.
    """
    layers = bitlinear_layers(model)
    if not layers:
        raise ValueError("pack: the model has no BitLinear; train one with model=bitnet, or convert a model to BitLinears")
    replacements: dict[int, nn.Module] = {id(old): PackedLinear.from_bitlinear(old, name) for name, old in layers.items()}
    if int8_embeddings:
        tables = {weight: Int8Table(weight) for weight in {layer.weight for layer in find_symbol_layers(model)}}
        names = {module: name for name, module in model.named_modules()}
        for layer in find_symbol_layers(model):
            require_plain(layer, names[layer])
            table = tables[layer.weight]
            new = Int8Embedding(table) if isinstance(layer, nn.Embedding) else Int8Linear(table, layer.bias)
            replacements[id(layer)] = new
    packed = copy.deepcopy(model, dict(replacements))  # as its memo, so that deepcopy takes these and copies no weight
    replacements.clear()  # huge pages are the only copy from here on
    move_to_huge_pages(packed)
    return packed.eval().requires_grad_(False)


@contract
def move_to_huge_pages(model: nn.Module) -> None:
    """Move the packed weights side by side into huge pages, if the system has them.

    The product of one row reads all weights in order: a third faster than from pages of 4 kB.
    """
    if sys.platform != "linux":
        return
    owners = [module for module in model.modules() if isinstance(module, PackedLinear | Int8Table)]
    starts = list(accumulate((-(-owner.codes.nbytes // CACHE_LINE) * CACHE_LINE for owner in owners), initial=0))
    if starts[-1] < HUGE_PAGE or any(owner.codes.device.type != "cpu" for owner in owners):
        return
    memory = mmap.mmap(-1, starts[-1] + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    skip = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    for owner, start in zip(owners, starts, strict=False):
        old = owner.codes
        new = torch.frombuffer(memory, dtype=old.dtype, count=old.numel(), offset=skip + start).view(old.shape)
        owner.codes = new.copy_(old)


def find_symbol_layers(model: nn.Module) -> Iterator[nn.Embedding | nn.Linear]:
    """Yield the embeddings of a model, and the linear layers that are tied to one or named head or lm_head."""
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        linear = type(module) is nn.Linear and (id(module.weight) in tied or name.rpartition(".")[2] in ("head", "lm_head"))
        if linear or type(module) is nn.Embedding:
            yield module


@contract
def count_packed_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights after `pack_model`; a layer that it refuses counts in float32."""
    layers = [layer for layer in bitlinear_layers(model).values() if not explain_unpackable(layer.quantizer)]
    symbols = {layer.weight for layer in find_symbol_layers(model)}
    with torch.device("meta"):  # shapes alone
        packed: list[nn.Module] = [PackedLinear(layer.in_features, layer.out_features, bias=False) for layer in layers]
        packed += (Int8Table(weight.to("meta")) for weight in symbols)
    rest = set(model.parameters()) - symbols - {p for layer in layers for p in {*layer.parameters()} - {layer.bias}}
    return sum(buffer.nbytes for module in packed for buffer in module.buffers()) + 4 * sum(p.numel() for p in rest)
