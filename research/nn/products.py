"""Multiply codes with one of three backends. All compute the same integers; they differ in speed and in the sum's precision.

ste: float32, the plain reference (float64 stays float64). Exact for sums up to 2^24.
bf16_exact: on bf16 units (AMX, CUDA), where integers up to 256 are exact. It sums in float32, but on a CPU it returns the sum
    as bf16: 8 bits, as under autocast. The products of the backward pass are bf16 too.
int8: sums in int32. The backward pass is that of bf16_exact, or float32 on a CPU without bf16 units.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from research.nn.quantize import Quantizer

Backend = Literal["ste", "bf16_exact", "int8"]
FAST_BF16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
FAST_INT8 = torch.cpu._is_vnni_supported()
# Below these numbers of multiplications float32 is as fast as bf16 units in a training step, and as int8 in inference.
MIN_BF16_WORK, MIN_INT8_WORK = 2**22, 2**18


def choose_backend(x: Float[Tensor, "rows in"], out_features: int, needs_grad: bool, half_precision: bool) -> Backend:
    """Return the fastest backend for this shape and device.

    Without a gradient and with a float32 output, choose an exact one. The limits were measured on two cores with AMX; without
    bf16 or int8 units float32 is the fastest.
    """
    if x.dtype == torch.float64 or x.device.type not in ("cpu", "cuda"):
        return "ste"
    if x.device.type == "cuda":
        return "bf16_exact" if torch.cuda.is_bf16_supported(including_emulation=False) else "ste"
    work = x.shape[0] * x.shape[1] * out_features
    if FAST_BF16 and (needs_grad or half_precision):
        return "bf16_exact" if work >= MIN_BF16_WORK else "ste"
    return "int8" if FAST_INT8 and work >= MIN_INT8_WORK else "ste"


def choose_backward_dtype(operand: Shaped[Tensor, "out in"]) -> torch.dtype:
    """Return the type of the products of the backward pass, from that of the weight in the forward pass."""
    if operand.dtype != torch.int8:
        return operand.dtype
    return torch.bfloat16 if FAST_BF16 or operand.device.type == "cuda" else torch.float32


def scaled_matmul(
    x: Shaped[Tensor, "rows in"], w: Shaped[Tensor, "out in"], scale: Float[Tensor, "..."], dtype: torch.dtype
) -> Float[Tensor, "rows out"]:
    """Return x w^T, of operands of one type, times `scale`, in `dtype`."""
    if x.dtype == torch.int8 and _has_int8_matmul(x, w):
        y = torch._int_mm(x, w.t())
    elif x.dtype == torch.int8 and x.device.type != "cuda":
        y = x.float() @ w.float().t()
    elif x.device.type == "cuda" and x.element_size() < 4:
        y = torch.mm(x.bfloat16(), w.bfloat16().t(), out_dtype=torch.float32)
    else:
        y = x @ w.t()
    if y.dtype != dtype:
        y = y.to(torch.promote_types(dtype, torch.float32))
    return y.mul_(scale.to(y.dtype)).to(dtype)  # in place: one pass over memory less


def _has_int8_matmul(x: Shaped[Tensor, "rows in"], w: Shaped[Tensor, "out in"]) -> bool:
    """Return whether torch multiplies int8 matrices of this shape: on CUDA some, elsewhere none, on a CPU any but of one input.

    There torch 2.13 takes the transposed column for a row, and returns anything.
    """
    large = x.shape[0] > 16 and x.shape[1] % 8 == 0 and w.shape[0] % 8 == 0
    return (x.device.type == "cpu" and x.shape[1] > 1) or (x.device.type == "cuda" and large)


class Products(torch.autograd.Function):
    """x W^T of one quantized x and several quantized W.

    For the backward pass it saves x as int8 and each W as it was multiplied: less memory than in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, quantizer: Quantizer, backend: Backend, dtype: torch.dtype, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """`tensors` are the codes of all weights, then their scales, then the weights, which get the gradients."""
        count = len(tensors) // 3
        wide_codes, scale = quantizer.quantize_activation(x)
        codes = wide_codes.to(torch.int8)
        operand_dtype = {"ste": scale.dtype, "bf16_exact": torch.bfloat16, "int8": torch.int8}[backend]
        left, *rights = (operand.to(operand_dtype) for operand in (codes, *tensors[:count]))
        del wide_codes  # frees its memory for the product
        ctx.save_for_backward(codes, scale, *rights, *tensors[count : 2 * count])
        ctx.types = x.dtype, tensors[-1].dtype
        pairs = zip(rights, tensors[count:], strict=False)  # the scales come first in what is left
        return tuple(scaled_matmul(left, right, scale * w_scale.t(), dtype) for right, w_scale in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the gradients with quantized x and W in the operands' type: as autocast does, with less memory."""
        codes, scale, *others = ctx.saved_tensors
        rights, w_scales = others[: len(gradients)], others[len(gradients) :]
        dtype, x_grad, weight_grads = choose_backward_dtype(rights[0]), None, []
        x = codes.to(dtype).mul_(scale.to(dtype))
        for index, (gradient, right, w_scale) in enumerate(zip(gradients, rights, w_scales, strict=True)):
            small = gradient.to(dtype)
            if ctx.needs_input_grad[0]:
                w = (right.to(dtype) * w_scale).to(dtype)
                x_grad = small @ w if x_grad is None else torch.addmm(x_grad, small, w)
            learns = ctx.needs_input_grad[index - len(gradients)]
            weight_grads.append((small.t() @ x).to(ctx.types[1]) if learns else None)
        return None if x_grad is None else x_grad.to(ctx.types[0]), *[None] * (3 + 2 * len(gradients)), *weight_grads
