"""Packed weights as tensors: their layout in tiles, products with them, and operators that choose the kernel.

On a CPU the products run in ternary.c, on an NVIDIA GPU in Triton, everywhere else in torch, a block of outputs at a time.
All give the same bits as `BitLinear`, and its straight-through gradient.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.autograd.function import once_differentiable

from research.contracts import contract
from research.kernels import ternary
from research.nn.quantize import TERNARY, require_floating_point

Tiles = UInt8[Tensor, "tiles_out tiles_in 256"]  # ternary weights
Int8Rows = Int8[Tensor, "out padded"]  # int8 weights
Product = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x, codes and scale
OUTS, INS = 16, 64  # outputs and inputs of a tile
BLOCK = 256  # outputs that the torch path unpacks at a time
MAX_EXACT_INPUTS = 1024  # int8 products that float32 sums exactly: 1024 * 127^2 < 2^24


@contract
def pack(codes: Float[Tensor, "out in"]) -> Tiles:
    """Pack ternary codes at two bits each, as code + 1, in tiles of 16 outputs x 64 inputs; padding has the code 0.

    Byte 64 i + 4 n + j of a tile holds, in its bit pair s, the weight of output n and input 16 i + 4 s + j.
    """
    out, width = codes.shape
    full = F.pad(codes, (0, -width % INS, 0, -out % OUTS)).to(torch.int8) + 1
    tiles = full.view(-1, OUTS, full.shape[1] // INS, 4, 4, 4)  # tile, n, tile, i, s, j
    pairs = tiles.permute(0, 2, 3, 1, 5, 4).to(torch.uint8) << torch.arange(0, 8, 2, dtype=torch.uint8)
    return pairs.sum(-1, dtype=torch.uint8).reshape(full.shape[0] // OUTS, -1, 256)


@contract
def unpack(packed: Tiles, out_features: int, in_features: int) -> Int8[Tensor, "out in"]:
    """Return the codes that `pack` has packed."""
    shifts = torch.arange(0, 8, 2, dtype=torch.int32, device=packed.device)  # ONNX has these of int32 only
    pairs = torch.bitwise_right_shift(packed.view(*packed.shape[:2], 4, OUTS, 4, 1).to(torch.int32), shifts) & 3
    full = pairs.permute(0, 3, 1, 2, 5, 4).reshape(packed.shape[0] * OUTS, -1)
    return full[:out_features, :in_features].to(torch.int8) - 1


def _exact_matmul(q: Float[Tensor, "*rows in"], codes: Shaped[Tensor, "out in"]) -> Float[Tensor, "*rows out"]:
    """Multiply in the type of q: outside autocast, which would round the sums to its own type."""
    if not torch.is_autocast_enabled(q.device.type):
        return F.linear(q, codes.to(q.dtype))
    with torch.autocast(q.device.type, enabled=False):
        return F.linear(q, codes.to(q.dtype))


def check_operands(x: Tensor, codes: Tensor, scale: Tensor) -> None:
    """Raise ValueError if types and shapes are not those of one layer, or a derivative is wanted, which no kernel records.

    C would read past the end of memory; torch would record the gradient of the scale of x alone.
    """
    require_floating_point(x)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        fix = "call research.nn.tiles.multiply, or run it under torch.no_grad()"
        raise ValueError(f"an operator with packed weights records no gradient: {fix}")
    refuse_forward_mode(x)
    width, out = x.shape[-1], scale.shape[0]
    tiles_in = -(-width // INS)
    expected = [-(-out // OUTS), tiles_in, OUTS * INS // 4] if codes.dtype == torch.uint8 else [out, tiles_in * INS]
    if codes.dtype not in (torch.uint8, torch.int8) or list(codes.shape) != expected:
        layer = f"a layer of {width} inputs and {out} outputs"
        raise ValueError(f"packed weights {codes.dtype} {list(codes.shape)} do not fit {layer}: give {expected}")


def refuse_forward_mode(x: Tensor) -> None:
    """Raise ValueError if x carries a tangent, which a kernel would lose."""
    if unpack_dual(x).tangent is not None:
        raise ValueError("a packed layer has no forward-mode derivative: use backward()")


class _StraightThrough(torch.autograd.Function):
    """A product with packed weights, whose gradient for x is that of a product with the dequantized weights."""

    @staticmethod
    def forward(ctx: Any, product: Product, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.product, ctx.dtype, ctx.width = product, x.dtype, x.shape[-1]
        ctx.save_for_backward(codes, scale, *([x] if ctx.needs_input_grad[3] else []))
        return product(x, codes, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply in float32 at least, as `BitLinear` does. The output is linear in `scale`: its gradient is exact."""
        codes, scale, *saved = ctx.saved_tensors
        wide = torch.promote_types(ctx.dtype, torch.float32)
        x_grad = scale_grad = None
        if ctx.needs_input_grad[1]:
            ints = unpack(codes, scale.shape[0], ctx.width) if codes.dtype == torch.uint8 else codes[:, : ctx.width]
            w = ints.to(wide) * scale.to(wide)[:, None]
            x_grad = _exact_matmul(gradient.to(wide), w.t()).to(ctx.dtype)
        if saved:
            y = ctx.product(*saved, codes, torch.ones_like(scale))
            scale_grad = (gradient * y).flatten(0, -2).sum(0, dtype=wide).to(scale.dtype)
        return None, x_grad, None, scale_grad


def multiply(product: Product, x: Float[Tensor, "*batch in"], codes: Tensor, scale: Tensor) -> Float[Tensor, "*batch out"]:
    """Return product(x, codes, scale), by an operator or a function of this module; record the gradients that are wanted.

    There is no second derivative and no `torch.func`, as in `BitLinear`. Raise ValueError for an x that is not floating-point.
    """
    refuse_forward_mode(x)
    learns = x.requires_grad or scale.requires_grad or torch._C._are_functorch_transforms_active()  # which torch refuses
    if learns and torch.is_grad_enabled():  # else plain operators, for exporters; and a quarter of a product's time less
        return _StraightThrough.apply(product, x, codes, scale)  # type: ignore[no-any-return, no-untyped-call]
    return product(x, codes, scale)


def ternary_linear(x: Float[Tensor, "*batch in"], codes: Tiles, scale: Float[Tensor, "out"]) -> Float[Tensor, "*batch out"]:
    """Return the product of quantized x and packed weights, computed in torch."""
    check_operands(x, codes, scale)
    q, x_scale = TERNARY.quantize_activation(x.detach().reshape(-1, x.shape[-1]))  # once traced, x may want a gradient
    blocks = (unpack(tiles, OUTS * tiles.shape[0], x.shape[-1]) for tiles in codes.split(BLOCK // OUTS))
    sums = torch.cat([_exact_matmul(q, block) for block in blocks], -1)
    y = sums[:, : scale.shape[0]] * (x_scale * scale)
    return y.to(x.dtype).reshape(*x.shape[:-1], scale.shape[0])


def int8_linear(x: Float[Tensor, "*batch in"], codes: Int8Rows, scale: Float[Tensor, "out"]) -> Float[Tensor, "*batch out"]:
    """Return the product of quantized x and int8 weights, computed in torch."""
    check_operands(x, codes, scale)
    width = x.shape[-1]
    q, x_scale = TERNARY.quantize_activation(x.detach().reshape(-1, width))
    parts = []
    for block in codes.split(16 * BLOCK):
        sums = [
            _exact_matmul(q[:, start : start + MAX_EXACT_INPUTS], block[:, start : min(start + MAX_EXACT_INPUTS, width)])
            for start in range(0, width, MAX_EXACT_INPUTS)
        ]
        parts.append(sums[0] if len(sums) == 1 else torch.stack([s.to(torch.int32) for s in sums]).sum(0, dtype=torch.int32))
    y = torch.cat(parts, -1).to(q.dtype) * (x_scale * scale)
    return y.to(x.dtype).reshape(*x.shape[:-1], scale.shape[0])


def _linear_cpu(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Return the product computed in C; in torch if C cannot compute it: no compiler, float64, or too many inputs."""
    check_operands(x, codes, scale)
    width, c, is_ternary = x.shape[-1], ternary.get_library(), codes.dtype == torch.uint8
    if c is None or x.dtype == torch.float64 or not 0 < width <= ternary.MAX_IN_FEATURES:
        return (ternary_linear if is_ternary else int8_linear)(x, codes, scale)
    rows = x.reshape(-1, width).float().contiguous()
    y = c.linear(rows, codes.contiguous(), scale.float().contiguous(), 2 if is_ternary else 8)
    return y.to(x.dtype).view(*x.shape[:-1], len(scale))


def _ternary_cuda(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    check_operands(x, codes, scale)
    if x.dtype == torch.float64 or not find_spec("triton"):
        return ternary_linear(x, codes, scale)
    from research.kernels import triton_ternary  # here: Triton is slow to import

    q, x_scale = TERNARY.quantize_activation(x.reshape(-1, x.shape[-1]))
    y: Tensor = triton_ternary.ternary_linear(q, x_scale, codes, scale)
    return y.to(x.dtype).view(*x.shape[:-1], scale.shape[0])


def _allocate_output(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    check_operands(x, codes, scale)
    return x.new_empty(*x.shape[:-1], scale.shape[0])


# As operators, torch.export and torch.compile see one node each.
_operators = torch.library.Library("grokbit", "DEF")
for _name, _cuda in (("ternary_linear", _ternary_cuda), ("int8_linear", int8_linear)):
    _operators.define(f"{_name}(Tensor x, Tensor codes, Tensor scale) -> Tensor")
    _operators.impl(_name, _linear_cpu, "CPU")
    _operators.impl(_name, _cuda, "CUDA")
    _operators.impl(_name, _allocate_output, "Meta")
