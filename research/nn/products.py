"""Products of codes, three ways. All give the same whole numbers; they differ in speed, and in what is left of a sum.

ste: float32, the plain reference (float64 stays float64). Exact up to sums of 2^24.
bf16_exact: on bf16 tensor units (AMX, CUDA), where whole numbers up to 256 are exact. Summed in float32, but on a CPU the sum
    itself comes back as bf16: 8 bits, as under autocast. The products of the backward pass run there too.
int8: summed in int32; the backward pass as bf16_exact.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

BackEnd = Literal["ste", "bf16_exact", "int8"]
FAST_BF16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
FAST_INT8 = torch.cpu._is_vnni_supported()
ROWS = range(128, 1025)  # where int8 pays on a CPU


def chosen(x: Float[Tensor, "rows in"], learns: bool, rounded: bool) -> BackEnd:
    """The fastest back end for this shape on this device; an exact one where nothing is learnt from it and the output is
    not `rounded` to 16 bits anyway.
    """
    if x.dtype == torch.float64 or x.device.type not in ("cpu", "cuda"):
        return "ste"
    if x.device.type == "cuda":
        return "bf16_exact" if torch.cuda.is_bf16_supported(including_emulation=False) else "ste"
    if FAST_BF16 and (learns or rounded):
        return "bf16_exact"
    return "int8" if FAST_INT8 and x.shape[0] in ROWS else "ste"


def operand(back_end: BackEnd, codes: Shaped[Tensor, "*shape"], wide: torch.dtype = torch.float32) -> Shaped[Tensor, "*shape"]:
    """Codes in the type that the back end multiplies."""
    return codes.to({"ste": wide, "bf16_exact": torch.bfloat16, "int8": torch.int8}[back_end])


def product(x: Shaped[Tensor, "rows in"], w: Shaped[Tensor, "out in"]) -> Float[Tensor, "rows out"]:
    """x w^T of operands of one type, in float32 (float64 of float64)."""
    if x.dtype == torch.int8:
        return torch._int_mm(x, w.t()).float()
    if x.dtype == torch.bfloat16 and x.device.type == "cuda":
        return torch.mm(x, w.t(), out_dtype=torch.float32)
    y = F.linear(x, w)
    return y.float() if y.dtype == torch.bfloat16 else y
