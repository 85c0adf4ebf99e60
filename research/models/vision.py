"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929). Its linear layer is a parameter, as elsewhere."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from research import rules
from research.data.spec import Images
from research.models.transformer import Block
from research.nn.attention import Attention
from research.nn.bitlinear import Linear
from research.nn.feedforward import Activation, FeedForward
from research.nn.norm import RMSNorm
from research.ranges import Depth, Fraction, NonNegativeInt, PositiveFloat, PositiveInt, check_settings
from research.rules import find_divisor


class Vision(nn.Module):
    """Patches, their linear embedding, learnt positions, blocks of the transformer in which all patches see all, norm, head.

    The head reads the mean over the patches; where each pixel has a class, it gives the classes of a patch's pixels. Patches
    and head stay in full precision, as the ends of BitNet do. Raise ValueError if `heads` or `patch_size` does not divide.
    """

    def __init__(
        self,
        shape: Images,
        dim: PositiveInt,
        depth: Depth,
        heads: PositiveInt,
        linear: Linear,
        patch_size: PositiveInt = 4,  # pixels; divides height and width
        ffn_dim: NonNegativeInt = 0,  # width of the feed-forward layer; 0: 8/3 of dim, up to a multiple of 64
        activation: Activation = "silu",
        sub_norm: bool = False,  # norms before the output projections; conf/model has true, as BitNet has them
        dropout: Fraction = 0.0,
        init_std: PositiveFloat = 0.02,
    ) -> None:
        check_settings("model", Vision.__init__.__annotations__, locals())
        super().__init__()
        rules.enforce(rules.check_heads(dim, heads, rotary=False))
        if (side := math.gcd(shape.height, shape.width)) % patch_size:
            message = f"model.patch_size={patch_size} does not divide images of {shape.height} x {shape.width} pixels"
            raise ValueError(f"{message}\ngive model.patch_size={find_divisor(side, patch_size)}")
        ffn_dim = ffn_dim or 64 * -(-8 * dim // (3 * 64))
        build_norm: Callable[[int], nn.Module] = RMSNorm if sub_norm else nn.Identity
        self.shape, self.patch_size = shape, patch_size
        self.rows, self.columns = shape.height // patch_size, shape.width // patch_size
        self.embed = nn.Linear(shape.channels * patch_size**2, dim)
        self.position = nn.Parameter(torch.empty(self.rows * self.columns, dim))
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attention = Attention(dim, heads, heads, linear, build_norm(dim), causal=False)
            self.blocks.append(
                Block(attention, FeedForward(dim, ffn_dim, activation, linear, build_norm(ffn_dim)), dim, dropout)
            )
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, shape.num_classes * (patch_size**2 if shape.per_pixel else 1))
        nn.init.normal_(self.position)  # as large as patches are: at the size of weights, training hardly sees where they lie
        for name, parameter in self.blocks.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=init_std)
        nn.init.normal_(self.head.weight, std=init_std)

    def forward(self, images: Num[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes *pixels"]:
        """Return the logits of each image's class, or of each pixel's: [batch, classes, height, width].

        Whole numbers from 0 to 255 are scaled to -1 to 1, others are taken as they are. Raise ValueError for another size.
        """
        if images.shape[1:] != self.shape[:3]:
            size, own = (" x ".join(map(str, numbers)) for numbers in (images.shape[1:], self.shape[:3]))
            raise ValueError(f"images of {size}: this model was built for {own} (channels, height, width)")
        x = images.to(self.position.dtype)
        x = self.embed(self.cut_patches(x if images.is_floating_point() else x / 127.5 - 1)) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.join_patches(self.head(x)) if self.shape.per_pixel else self.head(x.mean(1))

    def cut_patches(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches numbers"]:
        """Return the numbers of each patch, row after row."""
        size = self.patch_size
        patches = images.unflatten(2, (self.rows, size)).unflatten(4, (self.columns, size))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # type: ignore[no-any-return]

    def join_patches(self, patches: Float[Tensor, "batch patches numbers"]) -> Float[Tensor, "batch classes height width"]:
        """Return the images that `cut_patches` cuts so."""
        size = self.patch_size
        grid = patches.unflatten(2, (-1, size, size)).unflatten(1, (self.rows, self.columns))
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # type: ignore[no-any-return]
