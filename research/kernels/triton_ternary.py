"""The packed ternary product on a GPU: one Triton kernel for one row and for many, over the tiles of tiles.py.

Integers are summed in int32 on the tensor cores, so the bits are those of the other kernels. Only tiles.py imports this file,
and only for tensors on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

OUTS, INS = 64, 64  # of a program: four tiles of outputs, one tile of inputs at a time


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    q, x_scale, codes, w_scale, y, rows, out, width, tiles: constexpr, many: constexpr, outs: constexpr, ins: constexpr
):
    """y = (q w^T) * (x_scale * w_scale) for many x outs of y; q is [rows, width] int8."""
    row = tl.program_id(0) * many + tl.arange(0, many)
    n = tl.program_id(1) * outs + tl.arange(0, outs)
    k = tl.arange(0, ins)
    offset = 64 * (k // 16)[:, None] + 4 * (n % 16)[None, :] + (k % 4)[:, None]  # of a weight's byte in its tile
    shift = (2 * (k // 4 % 4))[:, None]  # of its bit pair
    tile = (n // 16).to(tl.int64)[None, :] * tiles
    sums = tl.zeros((many, outs), tl.int32)
    for t in range(tiles):
        column = t * ins + k
        inside = (row < rows)[:, None] & (column < width)[None, :]
        x = tl.load(q + row.to(tl.int64)[:, None] * width + column[None, :], mask=inside, other=0)
        pairs = tl.load(codes + (tile + t) * 256 + offset, mask=(n < out)[None, :], other=0)
        w = ((pairs >> shift) & 3).to(tl.int8) - 1
        sums += tl.dot(x, w, out_dtype=tl.int32)
    scale = tl.load(x_scale + row, mask=row < rows, other=0)[:, None] * tl.load(w_scale + n, mask=n < out, other=0)[None, :]
    output = row.to(tl.int64)[:, None] * out + n[None, :]
    tl.store(y + output, sums.to(tl.float32) * scale, mask=(row < rows)[:, None] & (n < out)[None, :])


def ternary_linear(q: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Return the product of quantized rows q, [rows, in], and packed weights [tiles_out, tiles_in, 256]: [rows, out], float32.

    `x_scale` is the scale of each row, [rows, 1]; `scale` is that of each output, [out].
    """
    (rows, in_features), out_features = q.shape, scale.shape[0]
    y = torch.empty(rows, out_features, device=q.device)
    if rows:
        q = q.nan_to_num(0.0).to(torch.int8)  # the scale of a row that is not finite is not finite either
        block = 16 if rows <= 16 else 64
        grid = (triton.cdiv(rows, block), triton.cdiv(out_features, OUTS))
        sizes = rows, out_features, in_features, codes.shape[1], block, OUTS, INS
        _kernel[grid](q, x_scale.contiguous(), codes.contiguous(), scale.contiguous(), y, *sizes)
    return y
