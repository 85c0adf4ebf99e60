"""The packed ternary product on a GPU: one Triton kernel for one row and for many, over the tiles of tiles.py.

Whole numbers are summed in int32 on the tensor cores, so the bits are those of the other paths. Only tiles.py imports this
file, and only for tensors on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from research.nn.quantize import TERNARY

OUTS, INS = 64, 64  # of a program: four tiles of outputs, one tile of inputs at a time


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    q,
    x_scale,
    codes,
    w_scale,
    y,
    rows,
    out,
    width,
    tiles: tl.constexpr,
    many: tl.constexpr,
    outs: tl.constexpr,
    ins: tl.constexpr,
):
    """y = (q w^T) * (x_step * step) for many x outs of y; q is [rows, width] int8."""
    row = tl.program_id(0) * many + tl.arange(0, many)
    n = tl.program_id(1) * outs + tl.arange(0, outs)
    k = tl.arange(0, ins)
    place = 64 * (k // 16)[:, None] + 4 * (n % 16)[None, :] + (k % 4)[:, None]  # of a weight's byte in its tile
    shift = (2 * (k // 4 % 4))[:, None]  # of its bit pair
    tile = (n // 16).to(tl.int64)[None, :] * tiles
    sums = tl.zeros((many, outs), tl.int32)
    for t in range(tiles):
        left = t * ins + k
        inside = (row < rows)[:, None] & (left < width)[None, :]
        x = tl.load(q + row.to(tl.int64)[:, None] * width + left[None, :], mask=inside, other=0)
        pairs = tl.load(codes + (tile + t) * 256 + place, mask=(n < out)[None, :], other=0)
        w = ((pairs >> shift) & 3).to(tl.int8) - 1
        sums += tl.dot(x, w, out_dtype=tl.int32)
    scale = tl.load(x_scale + row, mask=row < rows, other=0)[:, None] * tl.load(w_scale + n, mask=n < out, other=0)[None, :]
    at = row.to(tl.int64)[:, None] * out + n[None, :]
    tl.store(y + at, sums.to(tl.float32) * scale, mask=(row < rows)[:, None] & (n < out)[None, :])


def ternary_linear(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The product of rounded x, [..., in] in at most 32 bits, and packed weights [tiles_out, tiles_in, 256]: [..., out]."""
    width, out = x.shape[-1], scale.shape[0]
    q, x_step = TERNARY.quantize_activation(x.reshape(-1, width))
    rows = q.shape[0]
    y = torch.empty(rows, out, device=x.device)
    if rows:
        q = q.nan_to_num(0.0).to(torch.int8)  # the step of a row that is not finite is not finite either
        block = 16 if rows <= 16 else 64
        grid = (triton.cdiv(rows, block), triton.cdiv(out, OUTS))
        _kernel[grid](
            q,
            x_step.contiguous(),
            codes.contiguous(),
            scale.contiguous(),
            y,
            rows,
            out,
            width,
            codes.shape[1],
            block,
            OUTS,
            INS,
        )
    return y.to(x.dtype).view(*x.shape[:-1], out)
