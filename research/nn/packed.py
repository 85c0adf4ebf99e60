"""Ternary layers as they run: two bits a weight in memory, activations int8 per token."""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

OUTS, INS = 16, 64  # outputs and inputs of a tile


def pack(codes: Float[Tensor, "out in"]) -> UInt8[Tensor, "tiles_out tiles_in 256"]:
    """Ternary codes at two bits each, as code + 1, in tiles of 16 outputs x 64 inputs; what is beyond the edge is 0.

    Byte 64 i + 4 n + j of a tile holds, in its bit pair s, the weight of output n and input 16 i + 4 s + j.
    """
    out, width = codes.shape
    full = torch.nn.functional.pad(codes, (0, -width % INS, 0, -out % OUTS)).to(torch.int8) + 1
    tiles = full.view(-1, OUTS, full.shape[1] // INS, 4, 4, 4)  # tile, n, tile, i, s, j
    pairs = tiles.permute(0, 2, 3, 1, 5, 4).to(torch.uint8) << torch.arange(0, 8, 2, dtype=torch.uint8)
    return pairs.sum(-1, dtype=torch.uint8).reshape(full.shape[0] // OUTS, -1, 256)


def unpack(packed: UInt8[Tensor, "tiles_out tiles_in 256"], out: int, width: int) -> Int8[Tensor, "out in"]:
    """The codes again."""
    pairs = packed.view(*packed.shape[:2], 4, OUTS, 4, 1) >> torch.arange(0, 8, 2, dtype=torch.uint8) & 3
    full = pairs.permute(0, 3, 1, 2, 5, 4).reshape(packed.shape[0] * OUTS, -1)
    return full[:out, :width].to(torch.int8) - 1
