"""The linear layer of BitNet b1.58: ternary weights, int8 activations, full-precision master weights.

Its output is the product of two matrices of small whole numbers, the codes, times their steps. Whole numbers add up in any
order without an error (of sums up to 2^24: a thousand inputs with 8-bit weights, 130,000 with ternary ones), so every back
end, and the packed layer in research/nn/packed.py, sees the same layer. The gradient passes straight through the rounding
(Bengio et al. 2013, arXiv 1308.3432).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import type_before_parametrizations

from research import rules
from research.nn.products import Backend, choose_backend, choose_backward_dtype, scaled_matmul, to_operand
from research.nn.quantize import Quantizer
from research.ranges import NonNegativeInt, PositiveInt, WeightBits

QuantizedWeight = tuple[Tensor, Tensor]  # codes and step of a weight
DEFAULT_EXCLUDE = ("*head", "*embed*")  # embedding and head, which stay in full precision


class _Linears(torch.autograd.Function):
    """x W^T of rounded x and each of several rounded W. What is saved for the backward pass: x as int8, each W as it was
    multiplied.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, quantizer: Quantizer, backend: Backend, dtype: torch.dtype, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """`tensors` are the codes of each weight, then their steps, then the weights, for their gradients."""
        third = len(tensors) // 3
        wide, steps = quantizer.quantize_activation(x)
        codes = wide.to(torch.int8)
        left, *rights = (to_operand(backend, each, steps.dtype) for each in (codes, *tensors[:third]))
        del wide  # its memory is the product's
        ctx.save_for_backward(codes, steps, *rights, *tensors[third : 2 * third])
        ctx.types = x.dtype, tensors[-1].dtype
        pairs = zip(rights, tensors[third:], strict=False)
        return tuple(scaled_matmul(left, right, steps * w_steps.t(), dtype) for right, w_steps in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Products of the gradients with rounded x and W, in the small type: as autocast would, but for less memory."""
        codes, steps, *others = ctx.saved_tensors
        rights, w_steps = others[: len(gradients)], others[len(gradients) :]
        dtype, of_x, of_weights = choose_backward_dtype(rights[0]), None, []
        x = codes.to(dtype).mul_(steps.to(dtype))
        for place, (gradient, right, step) in enumerate(zip(gradients, rights, w_steps, strict=True)):
            small = gradient.to(dtype)
            if ctx.needs_input_grad[0]:
                w = (right.to(dtype) * step).to(dtype)
                of_x = small @ w if of_x is None else torch.addmm(of_x, small, w)
            learns = ctx.needs_input_grad[place - len(gradients)]
            of_weights.append((small.t() @ x).to(ctx.types[1]) if learns else None)
        if of_x is not None:
            of_x = of_x.to(ctx.types[0])
        return of_x, *[None] * (3 + 2 * len(gradients)), *of_weights


class BitLinear(nn.Linear):
    """`nn.Linear` that sees W1.58A8 unless told otherwise; takes the place of `nn.Linear` anywhere.

    Settings of rounding are those of `Quantizer`. With `warmup`, training goes from full precision to rounded values in so
    many steps, x + lambda (rounded x - x), lambda from 0 to 1 (for weights that were trained in full precision); the loop
    tells the step through `begin_step`. Evaluation always sees rounded values. While it lasts, and where groups of inputs
    have a step each, rounded values are multiplied in full precision. There is no second derivative, and no `torch.func`.
    Raises ValueError for settings that there are not, where `per` does not divide the inputs, and where there are none.
    """

    lamb: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scale_method: Literal["absmean", "absmedian", "absmax"] = "absmean",
        weight_bits: WeightBits = 1.58,
        granularity: Literal["tensor", "channel"] | PositiveInt = "tensor",
        activation_bits: Literal[8, 4] = 8,
        activation_granularity: Literal["token", "tensor"] = "token",
        warmup: NonNegativeInt = 0,  # steps
        backend: Literal["auto", "ste", "bf16_exact", "int8"] = "auto",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not in_features or not out_features:
            raise ValueError(f"a BitLinear of {in_features} inputs and {out_features} outputs has no weight to round")
        super().__init__(in_features, out_features, bias, device, dtype)
        self.quantizer = Quantizer(scale_method, weight_bits, granularity, activation_bits, activation_granularity)
        if isinstance(granularity, int):
            rules.enforce(rules.check_group_size(granularity, in_features), rules.check_backend(granularity, backend))
        if backend not in (known := ("auto", *get_args(Backend))):
            raise ValueError(f"model.linear.backend={backend}: give one of {', '.join(known)}")
        if type(warmup) is not int or warmup < 0:
            raise ValueError(f"model.linear.warmup={warmup}: give a number of steps, or 0")
        self.backend, self.warmup, self.is_warming_up = backend, warmup, warmup > 0
        self.cached_weight: QuantizedWeight | None = None  # of this very weight, while it does not change
        self.register_buffer("lamb", torch.tensor(0.0 if warmup else 1.0, device=device), persistent=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return _forward_quantized(x, [self])[0] if self.can_multiply_codes else self.forward_reference(x)

    @property
    def can_multiply_codes(self) -> bool:
        """Whether a product of codes gives the output; on the meta device, which has no autocast, there is none."""
        return not (
            isinstance(self.quantizer.granularity, int) or (self.is_warming_up and self.training) or self.weight.is_meta
        )

    def get_quantized_weight(self, dtype: torch.dtype | None = None) -> QuantizedWeight:
        """Codes, as `dtype` unless they are kept, and step of the weight."""
        return self.cached_weight or self.quantizer.quantize_weight(self.weight, dtype)

    def forward_reference(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """In full precision over rounded values: what groups, the warm-up and the meta device need."""
        lamb = self.lamb if self.is_warming_up and self.training else None
        codes, steps = self.quantizer.quantize_activation(x)
        w_codes, w_steps = self.get_quantized_weight()
        w_codes = w_codes.to(w_steps.dtype)  # those that are kept are of a small type
        return F.linear(
            straight_through(x, codes * steps, lamb), straight_through(self.weight, w_codes * w_steps, lamb), self.bias
        )


def shared_input_linears(x: Float[Tensor, "*batch in"], *linears: nn.Module) -> list[Float[Tensor, "*batch _"]]:
    """What each of several layers makes of one input. BitLinears that round alike round it once for all of them; one that
    somebody has changed, or hooked, is called by itself.
    """
    bits = [layer for layer in linears if type(layer) is BitLinear and layer.can_multiply_codes and not _has_hooks(layer)]
    if len(bits) < len(linears) or len({(layer.quantizer, layer.backend) for layer in bits}) > 1:
        return [layer(x) for layer in linears]
    return _forward_quantized(x, bits)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _forward_quantized(x: Float[Tensor, "*batch in"], layers: Sequence[BitLinear]) -> list[Float[Tensor, "*batch _"]]:
    """The outputs of layers that round alike, by the products of codes."""
    kind, rows, backend = x.device.type, x.reshape(-1, x.shape[-1]), cast(Any, layers[0].backend)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if not x.is_floating_point():  # the output, of the input's type, would be cut off
        raise ValueError(
            f"a BitLinear takes floating-point numbers, its input is {x.dtype}: give x.to({layers[0].weight.dtype})"
        )
    with torch.autocast(kind, enabled=False):
        if backend == "auto":
            learns = torch.is_grad_enabled() and any(layer.weight.requires_grad for layer in layers)
            backend = choose_backend(rows, sum(layer.out_features for layer in layers), learns, dtype.itemsize < 4)
        with torch.no_grad():
            codes, steps = zip(*(layer.get_quantized_weight(torch.bfloat16) for layer in layers), strict=True)
        weights = [layer.weight for layer in layers]
        ys = _Linears.apply(rows, layers[0].quantizer, backend, dtype, *codes, *steps, *weights)  # type: ignore[no-untyped-call]
    biases = [layer.bias for layer in layers]
    ys = [y.view(*x.shape[:-1], y.shape[-1]) for y in cast(tuple[Tensor, ...], ys)]
    return [y if bias is None else y + bias.to(y.dtype) for y, bias in zip(ys, biases, strict=True)]


def straight_through(
    x: Float[Tensor, "*shape"], quantized: Float[Tensor, "*shape"], lamb: Tensor | None
) -> Float[Tensor, "*shape"]:
    """`rounded` in the forward pass, or as much of it as lambda says; x in the backward pass."""
    quantized = quantized if lamb is None else torch.lerp(x, quantized.to(x.dtype), lamb.to(x.dtype))
    return quantized.detach().to(x.dtype) + (x - x.detach())


def bitlinear_layers(model: nn.Module) -> dict[str, BitLinear]:
    """The BitLinears of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}


def set_warmup_step(layers: Sequence[BitLinear], step: int) -> None:
    """Tell the layers how far training is: lambda = step / warmup, at most 1."""
    for layer in layers:
        if layer.warmup:
            layer.is_warming_up = step < layer.warmup
            layer.lamb.fill_(min(1.0, step / layer.warmup))


@contextmanager
def cached_quantized_weights(layers: Sequence[BitLinear]) -> Iterator[None]:
    """Inside, where the weights do not change, each is rounded once: for the micro-batches of a step, for an evaluation."""
    try:
        for layer in layers:
            with torch.no_grad():
                layer.cached_weight = layer.quantizer.quantize_weight(
                    layer.weight, torch.bfloat16
                )  # exact: codes have at most 8 bits
        yield
    finally:
        for layer in layers:
            layer.cached_weight = None


def convert_linears(
    model: nn.Module,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = DEFAULT_EXCLUDE,
    linear: Callable[..., nn.Module] = BitLinear,
    **settings: Any,
) -> nn.Module:
    """Turn each nn.Linear whose name fits a pattern of `include` and none of `exclude` into a BitLinear with `settings`,
    in place: it keeps its very weights, so an optimizer built before goes on to work. Returns the model.

    Subclasses of nn.Linear, which others may use in ways of their own, stay, as does what shares its weight with an
    embedding. With `warmup` your loop calls `begin_step`. Raises ValueError, before anything is changed, where no layer fits,
    where a pattern of yours fits nothing, for settings that there are not, where `per` does not divide the inputs of a layer,
    or where one has hooks or a weight that is computed.
    """
    include, exclude = ([given] if isinstance(given, str) else list(given) for given in (include, exclude))
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    modules = dict(model.named_modules(remove_duplicate=False))
    every = [(name, module) for name, module in modules.items() if type_before_parametrizations(module) is nn.Linear]
    fits = {
        name: module
        for name, module in every
        if any(fnmatch(name, pattern) for pattern in include)
        and not any(fnmatch(name, pattern) for pattern in exclude)
        and id(module.weight) not in tied
    }
    if not fits or "" in fits:
        told = f"has nn.Linear: {', '.join(name or 'itself' for name, _ in every[:8])}" if every else "has no nn.Linear"
        rest = f"; its other weights are in {others}, not in nn.Linear" if (others := _describe_other_modules(model)) else ""
        raise ValueError(f"convert: no layer fits include={include}, exclude={exclude}; the model {told}{rest}")
    for pattern in (*include, *exclude):
        if pattern not in ("*", *DEFAULT_EXCLUDE) and not any(fnmatch(name, pattern) for name in modules):
            raise ValueError(
                f"convert: the pattern {pattern} fits no module; layers are {', '.join(name for name, _ in every[:8])}"
            )
    made = {id(old): _convert_layer(name, old, linear, settings) for name, old in fits.items()}
    for name, old in fits.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made[id(old)])
    for module in filter(
        bitlinear_layers, modules.values()
    ):  # else evaluation takes paths that read the weights past the layers
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def _describe_other_modules(model: nn.Module) -> str:
    """The kinds of modules that hold matrices, linear layers and embeddings aside: of GPT-2 Conv1D, of experts their own."""
    aside = (nn.Linear, nn.Embedding)
    holders = {type(module).__name__ for module in model.modules() if type(module) not in aside and _has_matrix(module)}
    return ", ".join(sorted(holders))


def _has_matrix(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters(recurse=False))


def _convert_layer(name: str, old: nn.Linear, linear: Callable[..., nn.Module], settings: dict[str, Any]) -> nn.Module:
    """A layer with the weights of another."""
    if _has_hooks(old) or not isinstance(old.weight, nn.Parameter):
        raise ValueError(f"convert: {name} has hooks, or a weight that is computed: remove them first, or exclude it")
    try:
        layer = linear(old.in_features, old.out_features, old.bias is not None, device=torch.device("meta"), **settings)
    except TypeError as error:
        raise ValueError(f"convert: {error}") from error
    layer.weight, layer.bias = old.weight, old.bias
    if isinstance(layer, BitLinear):
        layer.lamb = torch.tensor(0.0 if layer.warmup else 1.0, device=old.weight.device)
    return layer.train(old.training)
