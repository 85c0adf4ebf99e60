"""The linear layer of BitNet b1.58: ternary weights, int8 activations, full-precision master weights.

Its output is the product of two matrices of small whole numbers, the codes, times their steps. Whole numbers add up in any
order without an error, so every back end, and the packed layer in research/nn/packed.py, sees the same layer. The gradient
passes straight through the rounding (Bengio et al. 2013, arXiv 1308.3432).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from research.nn.products import BackEnd, chosen, operand, product
from research.nn.quantize import Quantizer
from research.ranges import Natural

Kept = tuple[Tensor, Tensor]  # codes and step of a weight


class _Linear(torch.autograd.Function):
    """x W^T of rounded x and W. Activations are saved for the backward pass as int8, weights in the type of the product."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, quantizer: Quantizer, back_end: BackEnd, dtype: torch.dtype, kept: Kept | None
    ) -> Tensor:
        codes, steps = quantizer.activation(x)
        w_codes, w_steps = kept or quantizer.weight(weight)
        left, right = operand(back_end, codes, x.dtype), operand(back_end, w_codes, x.dtype)
        ctx.save_for_backward(codes.to(torch.int8), steps, right, w_steps)
        ctx.types = x.dtype, weight.dtype
        return product(left, right).mul_(steps * w_steps.t()).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, steps, w_codes, w_steps = ctx.saved_tensors
        small = torch.bfloat16 if w_codes.dtype == torch.int8 else w_codes.dtype
        of_x = of_w = None
        if ctx.needs_input_grad[0]:
            of_x = ((gradient * w_steps.t()).to(small) @ w_codes.to(small)).to(ctx.types[0])
        if ctx.needs_input_grad[1]:
            of_w = ((gradient * steps).to(small).t() @ codes.to(small)).to(ctx.types[1])
        return of_x, of_w, None, None, None, None


class BitLinear(nn.Linear):
    """`nn.Linear` that sees W1.58A8 unless told otherwise; takes the place of `nn.Linear` anywhere.

    Settings of rounding are those of `Quantizer`. With `warmup`, training goes from full precision to rounded values in so
    many steps, x + lambda (rounded x - x), lambda from 0 to 1 (for weights that were trained in full precision); the loop
    tells the step through `begin_step`. Evaluation always sees rounded values. Raises ValueError where `per` does not divide
    the inputs.
    """

    lamb: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scale: Literal["absmean", "absmedian", "absmax"] = "absmean",
        weight_bits: float = 1.58,
        per: Literal["tensor", "channel"] | int = "tensor",
        activation_bits: Literal[8, 4] = 8,
        activation_per: Literal["token", "tensor"] = "token",
        warmup: Natural = 0,  # steps
        back_end: Literal["auto", "ste", "bf16_exact", "int8"] = "auto",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.quantizer = Quantizer(scale, weight_bits, per, activation_bits, activation_per)
        if isinstance(per, int) and in_features % per:
            raise ValueError(f"linear.per={per} does not divide the {in_features} inputs of a layer")
        if back_end not in ("auto", "ste", "bf16_exact", "int8"):
            raise ValueError(f"linear.back_end={back_end}: give one of auto, ste, bf16_exact, int8")
        self.back_end, self.warmup, self.mixes = back_end, warmup, False
        self.kept: Kept | None = None  # of this very weight, while it does not change
        self.register_buffer("lamb", torch.ones((), device=device), persistent=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if isinstance(self.quantizer.per, int) or (self.mixes and self.training):
            return self._reference(x)
        with torch.autocast(kind, enabled=False):
            rows = x.flatten(0, -2)
            back_end: Any = self.back_end
            if back_end == "auto":
                back_end = chosen(rows, torch.is_grad_enabled() and self.weight.requires_grad, dtype.itemsize < 4)
            y = cast(Tensor, _Linear.apply(rows, self.weight, self.quantizer, back_end, dtype, self.kept))  # type: ignore[no-untyped-call]
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _reference(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """In full precision over rounded values: what groups and the warm-up need."""
        lamb = self.lamb if self.mixes and self.training else None
        codes, steps = self.quantizer.activation(x)
        w_codes, w_steps = self.kept or self.quantizer.weight(self.weight)
        return F.linear(through(x, codes * steps, lamb), through(self.weight, w_codes * w_steps, lamb), self.bias)


def through(x: Float[Tensor, "*shape"], rounded: Float[Tensor, "*shape"], lamb: Tensor | None) -> Float[Tensor, "*shape"]:
    """`rounded` in the forward pass, or as much of it as lambda says; x in the backward pass."""
    rounded = rounded if lamb is None else torch.lerp(x, rounded.to(x.dtype), lamb.to(x.dtype))
    return rounded.detach().to(x.dtype) + (x - x.detach())


def layers(model: nn.Module) -> dict[str, BitLinear]:
    """The BitLinears of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}


def begin_step(bits: Sequence[BitLinear], step: int) -> None:
    """Tell the layers how far training is: lambda = step / warmup, at most 1."""
    for layer in bits:
        if layer.warmup:
            layer.mixes = step < layer.warmup
            layer.lamb.fill_(min(1.0, step / layer.warmup))


@contextmanager
def kept(bits: Sequence[BitLinear]) -> Iterator[None]:
    """Inside, where the weights do not change, each is rounded once: for the micro-batches of a step, for an evaluation."""
    try:
        for layer in bits:
            with torch.no_grad():
                codes, step = layer.quantizer.weight(layer.weight)
            layer.kept = codes.to(torch.bfloat16), step  # exact: codes have at most 8 bits
        yield
    finally:
        for layer in bits:
            layer.kept = None


def convert(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ("*head*", "*embed*"), **settings: Any
) -> nn.Module:
    """Turn each nn.Linear whose name fits a pattern of `include` and none of `exclude` into a BitLinear with `settings`,
    in place: it keeps its very weights, so an optimizer built before goes on to work. Returns the model.

    Raises ValueError where no layer fits. Subclasses of nn.Linear, which others may use in ways of their own, stay.
    """
    fits = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and any(fnmatch(name, pattern) for pattern in include)
        and not any(fnmatch(name, pattern) for pattern in exclude)
    }
    if not fits:
        names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
        told = f"has nn.Linear: {', '.join(names[:8])}" if names else "has no nn.Linear"
        raise ValueError(f"convert: no layer fits include={list(include)}, exclude={list(exclude)}; the model {told}")
    for name, old in fits.items():
        layer = BitLinear(old.in_features, old.out_features, old.bias is not None, device=torch.device("meta"), **settings)
        layer.weight, layer.bias = old.weight, old.bias
        layer.lamb = torch.ones((), device=old.weight.device)
        layer.train(old.training)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return model


def ternary_count(model: nn.Module) -> int:
    """How many of a model's parameters are ternary."""
    return sum(layer.weight.numel() for layer in layers(model).values() if layer.quantizer.ternary)


def packed_bytes(model: nn.Module) -> int:
    """Size of the model with ternary weights at two bits and a scale each, everything else in float32."""
    rest = sum(p.numel() for p in model.parameters()) - ternary_count(model)
    scales = len(layers(model))
    return ternary_count(model) // 4 + 4 * (rest + scales)
