"""Products of codes, three ways. All give the same whole numbers; they differ in speed, and in what is left of a sum.

ste: float32, the plain reference (float64 stays float64). Exact up to sums of 2^24.
bf16_exact: on bf16 tensor units (AMX, CUDA), where whole numbers up to 256 are exact. Summed in float32, but on a CPU the sum
    itself comes back as bf16: 8 bits, as under autocast. The products of the backward pass run there too.
int8: summed in int32; the backward pass as bf16_exact, or in float32 on a CPU without bf16 units.
"""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Backend = Literal["ste", "bf16_exact", "int8"]
FAST_BF16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
FAST_INT8 = torch.cpu._is_vnni_supported()
MIN_MULTIPLICATIONS = (
    2**22,
    2**18,
)  # multiplications below which float32 is as fast: of a training step on bf16 units; of a product in int8


def choose_backend(x: Float[Tensor, "rows in"], out_features: int, needs_grad: bool, half_precision: bool) -> Backend:
    """The fastest back end for this shape on this device; an exact one where nothing is learnt from it and the output is
    not `rounded` to 16 bits anyway. Measured on two cores with AMX; without bf16 or int8 units float32 is the fastest.
    """
    if x.dtype == torch.float64 or x.device.type not in ("cpu", "cuda"):
        return "ste"
    if x.device.type == "cuda":
        return "bf16_exact" if torch.cuda.is_bf16_supported(including_emulation=False) else "ste"
    work = x.shape[0] * x.shape[1] * out_features
    if FAST_BF16 and (needs_grad or half_precision):
        return "bf16_exact" if work >= MIN_MULTIPLICATIONS[0] else "ste"
    return "int8" if FAST_INT8 and work >= MIN_MULTIPLICATIONS[1] else "ste"


def to_operand(
    backend: Backend, codes: Shaped[Tensor, "*shape"], ste_dtype: torch.dtype = torch.float32
) -> Shaped[Tensor, "*shape"]:
    """Codes in the type that the back end multiplies."""
    return codes.to({"ste": ste_dtype, "bf16_exact": torch.bfloat16, "int8": torch.int8}[backend])


def choose_backward_dtype(operand: Shaped[Tensor, "out in"]) -> torch.dtype:
    """The type of the products of the backward pass, by the operand of the forward one."""
    if operand.dtype != torch.int8:
        return operand.dtype
    return torch.bfloat16 if FAST_BF16 or operand.device.type == "cuda" else torch.float32


def scaled_matmul(
    x: Shaped[Tensor, "rows in"], w: Shaped[Tensor, "out in"], scale: Float[Tensor, "..."], dtype: torch.dtype
) -> Float[Tensor, "rows out"]:
    """x w^T of operands of one type, times `scale`, as `dtype`."""
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
    return y.mul_(scale.to(y.dtype)).to(dtype)  # in place: as few passes over memory as that takes


def _has_int8_matmul(x: Shaped[Tensor, "rows in"], w: Shaped[Tensor, "out in"]) -> bool:
    """Whether there is an int8 product of that shape: on a CPU of any, on CUDA of some, elsewhere of none."""
    large = x.shape[0] > 16 and x.shape[1] % 8 == 0 and w.shape[0] % 8 == 0
    return x.device.type == "cpu" or (x.device.type == "cuda" and large)
