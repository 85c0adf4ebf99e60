"""The linear layer of BitNet b1.58: ternary weights, int8 activations, full-precision master weights.

Its output is the product of two matrices of small integers, the codes, times their scales. Float32 sums integers exactly up
to 2^24, in any order: a thousand inputs with 8-bit weights, 130,000 with ternary ones. So all backends, and the packed layer
in research/nn/packed.py, compute the same output. The gradient is straight-through (Bengio et al. 2013, arXiv 1308.3432).
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from research import rules
from research.contracts import contract
from research.nn.blocks import DEFAULT_EXCLUDE, find_useless_pattern, match_names
from research.nn.products import Products, choose_backend
from research.nn.quantize import QuantizedWeight, Quantizer, require_floating_point, straight_through
from research.ranges import NonNegativeInt, OpenFraction, PositiveInt, WeightBits, check_settings

log = logging.getLogger(__name__)
Linear = Callable[..., nn.Module]  # nn.Linear, or a class or partial with its parameters
WIDE = "keep the weights in float32 and let autocast compute in half precision"


class BitLinear(nn.Linear):
    """`nn.Linear` with quantized weights and activations, W1.58A8 by default. It can replace `nn.Linear` anywhere.

    The settings of quantization are those of `Quantizer`. `warmup` is for weights that were trained in full precision. Over so
    many steps, or such a share of them, training moves from x to quantized x: x + mix (quantized x - x), with mix from 0 to 1.
    The loop sets mix with `set_warmup_step`, for a share after `count_warmup`; evaluation always uses quantized values.
    During the warm-up, and with groups of inputs, quantized values are multiplied in full precision. There is no second
    derivative, and no `torch.func`.
    Raise ValueError for an unknown value of a setting, a `granularity` that does not divide the inputs, or an empty weight.
    """

    mix: Tensor

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
        warmup: NonNegativeInt | OpenFraction = 0,  # steps, or a share of them
        backend: Literal["auto", "ste", "bf16_exact", "int8"] = "auto",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_settings("model.linear", BitLinear.__init__.__annotations__, locals())
        if not in_features or not out_features:
            raise ValueError(f"a BitLinear of {in_features} inputs and {out_features} outputs has no weight to quantize")
        super().__init__(in_features, out_features, bias, device, dtype)
        self.quantizer = Quantizer(scale_method, weight_bits, granularity, activation_bits, activation_granularity)
        if isinstance(granularity, int):
            rules.enforce(rules.check_group_size(granularity, in_features), rules.check_backend(granularity, backend))
        self.backend, self.warmup, self.warmup_steps, self.is_warming_up = backend, warmup, int(warmup), warmup > 0
        self.cached_weight: QuantizedWeight | None = None  # set while the weight does not change
        self.frozen_weight: tuple[Tensor, int, QuantizedWeight] | None = None  # of a weight that does not learn
        self.register_buffer("mix", torch.tensor(0.0 if warmup else 1.0, device=device), persistent=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return _forward_quantized(x, [self])[0] if self.can_multiply_codes else self.forward_reference(x)

    @property
    def can_multiply_codes(self) -> bool:
        """Return whether a product of codes gives the output. The meta device has no autocast, so it does not there."""
        has_groups = isinstance(self.quantizer.granularity, int)
        return not (has_groups or (self.is_warming_up and self.training) or self.mix.is_meta)

    def get_quantized_weight(self, dtype: torch.dtype | None = None, weight: Tensor | None = None) -> QuantizedWeight:
        """Return codes and scale of the weight: the cached ones, or new ones with the codes in `dtype`.

        In training those of a weight that does not learn are kept until it is changed. `weight` is the layer's, read before.
        """
        own, is_used = self._parameters.get("weight"), self.training and not torch.compiler.is_compiling()
        if self.cached_weight or own is None or own.requires_grad or not is_used or own.is_inference():
            return self.cached_weight or self.quantizer.quantize_weight(self.weight if weight is None else weight, dtype)
        old = self.frozen_weight
        if old is None or old[0].data_ptr() != own.data_ptr() or old[1] != own._version:
            self.frozen_weight = old = own.detach(), own._version, self.quantizer.quantize_weight(own, torch.bfloat16)
        return old[2]

    def forward_reference(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiply quantized values in full precision: for groups of inputs, the warm-up and the meta device."""
        _warn_about_half_precision([self])
        mix = self.mix if self.is_warming_up and self.training else None
        codes, scale = self.quantizer.quantize_activation(x)
        weight = self.weight
        w_codes, w_scale = self.get_quantized_weight(weight=weight)
        w_codes = w_codes.to(w_scale.dtype)  # cached codes are bf16
        operands = straight_through(x, codes * scale, mix), straight_through(weight, w_codes * w_scale, mix), self.bias
        wide = torch.promote_types(x.dtype, weight.dtype)
        y = F.linear(*(operand if operand is None else operand.to(wide) for operand in operands))
        return y.to(x.dtype) if y.dtype == wide else y  # autocast has a type of its own


def shared_input_linears(x: Float[Tensor, "*batch in"], *linears: nn.Module) -> list[Float[Tensor, "*batch _"]]:
    """Return the outputs of several layers for one input, which BitLinears of the same settings quantize only once.

    If a layer has hooks, is of another class or differs in its settings, call every layer by itself.
    """
    layers = [layer for layer in linears if isinstance(layer, BitLinear) and is_plain(layer) and layer.can_multiply_codes]
    if len(layers) < len(linears) or len({(layer.quantizer, layer.backend) for layer in layers}) > 1:
        return [layer(x) for layer in linears]
    return _forward_quantized(x, layers)


def is_plain(layer: BitLinear) -> bool:
    """Return whether a layer is no subclass and has no hooks. Its weight may be computed."""
    return type_before_parametrizations(layer) is BitLinear and not has_hooks(layer)


def has_hooks(layer: nn.Module) -> bool:
    """Return whether anybody has registered hooks on the layer: what calls its weights without it would lose them."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _forward_quantized(x: Float[Tensor, "*batch in"], layers: Sequence[BitLinear]) -> list[Float[Tensor, "*batch _"]]:
    """Return the outputs of layers with the same settings, by products of codes."""
    require_floating_point(x)
    _warn_about_half_precision(layers)
    kind, rows, backend = x.device.type, x.reshape(-1, x.shape[-1]), cast(Any, layers[0].backend)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        weights = [layer.weight for layer in layers]  # once: it may be computed
        if backend == "auto":
            learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
            backend = choose_backend(rows, sum(layer.out_features for layer in layers), learns, dtype.itemsize < 4)
        with torch.no_grad():
            pairs = (layer.get_quantized_weight(torch.bfloat16, w) for layer, w in zip(layers, weights, strict=True))
            codes, scales = zip(*pairs, strict=True)
        ys = Products.apply(rows, layers[0].quantizer, backend, dtype, *codes, *scales, *weights)  # type: ignore[no-untyped-call]
    ys = [y.view(*x.shape[:-1], y.shape[-1]) for y in cast(tuple[Tensor, ...], ys)]
    return [y if layer.bias is None else y + layer.bias.to(y.dtype) for y, layer in zip(ys, layers, strict=True)]


def _warn_about_half_precision(layers: Sequence[BitLinear]) -> None:
    """Warn once if weights of 16 bits learn: an update of less than a 256th of a weight is lost in them."""
    for layer in [] if torch.compiler.is_compiling() else layers:
        own = layer._parameters.get("weight")  # None: it is computed
        if own is not None and own.dtype.itemsize < 4 and own.requires_grad and layer.training and torch.is_grad_enabled():
            _log_half_precision(own.dtype)


@cache
def _log_half_precision(dtype: torch.dtype) -> None:
    log.warning("a BitLinear learns with weights in %s, which lose small updates, so few codes change: %s", dtype, WIDE)


@contract
def bitlinear_layers(model: nn.Module) -> dict[str, BitLinear]:
    """Return the BitLinears of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}


@contract
def count_warmup(layers: Iterable[BitLinear], steps: int) -> None:
    """Count the steps of each warm-up, a share rounded up. Raise ValueError where it does not end before `steps`."""
    for layer in layers:
        layer.warmup_steps = math.ceil(layer.warmup * steps) if 0 < layer.warmup < 1 else int(layer.warmup)
        rules.enforce(rules.check_warmup(layer.warmup_steps, steps))


def set_warmup_step(layers: Sequence[BitLinear], step: int) -> None:
    """Set the layers' mix to step / warmup, at most 1. Raise ValueError for a share whose steps are not counted."""
    for layer in layers:
        if layer.warmup and not layer.warmup_steps:
            raise ValueError(f"warmup={layer.warmup} is a share of the steps: call count_warmup(layers, steps) first")
        if layer.warmup:
            layer.is_warming_up = step < layer.warmup_steps
            layer.mix.fill_(min(1.0, step / layer.warmup_steps))


@contextmanager
def cached_quantized_weights(layers: Sequence[BitLinear]) -> Iterator[None]:
    """Quantize each weight once for the whole block, in which weights must not change: a step, or an evaluation."""
    try:
        for layer in layers:
            with torch.no_grad():  # bf16 holds codes of 8 bits exactly
                layer.cached_weight = layer.quantizer.quantize_weight(layer.weight, torch.bfloat16)
        yield
    finally:
        for layer in layers:
            layer.cached_weight = None


def convert_linears(
    model: nn.Module,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = DEFAULT_EXCLUDE,
    linear: Linear = BitLinear,
    **settings: Any,
) -> nn.Module:
    """Replace, in place, each nn.Linear whose name matches a pattern of `include` and none of `exclude`; return the model.

    The new layers are `linear` with `settings`, a BitLinear by default. They hold the same parameters, so an optimizer built
    before still works. Those of a BitLinear in half precision become float32 in place: it would lose small updates. There an
    optimizer must not have stepped before; a warning names what stays in half precision and learns. Subclasses of
    nn.Linear stay, because their owners may use them in other ways; so do layers that share their weight with an embedding.
    With `warmup` your loop must call `set_warmup_step`. Raise ValueError, before anything is changed, if no layer matches, a
    pattern matches nothing, a setting is wrong, or a layer has hooks or a computed weight.
    """
    include, exclude = ([patterns] if isinstance(patterns, str) else list(patterns) for patterns in (include, exclude))
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name, module in modules.items() if type_before_parametrizations(module) is nn.Linear}
    matching = {name: linears[name] for name in match_names(linears, include, exclude)}
    fits = {name: module for name, module in matching.items() if id(module.weight) not in tied}
    first_names = ", ".join(name or "itself" for name in [*linears][:8])
    if not fits or "" in fits:
        known = f"has nn.Linear: {first_names}" if linears else "has no nn.Linear"
        rest = f"; its other weights are in {others}, not in nn.Linear" if (others := _describe_other_modules(model)) else ""
        raise ValueError(f"convert: no layer matches include={include}, exclude={exclude}; the model {known}{rest}")
    if useless := find_useless_pattern(modules, include, exclude):
        raise ValueError(f"convert: the pattern {useless[1]} matches no module; layers are {first_names}")
    converted = {id(old): _convert_layer(name, old, linear, settings) for name, old in fits.items()}
    for name, old in fits.items():
        model.set_submodule(name, converted[id(old)])
    _widen_masters(model)
    for module in filter(bitlinear_layers, modules.values()):  # switch off fast paths that read the weights without the layers
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def _widen_masters(model: nn.Module) -> None:
    """Give the BitLinears of a model in half precision float32 weights; warn of others that learn."""
    stay = {id(p) for module in model.modules() if not isinstance(module, BitLinear) for p in module.parameters(recurse=False)}
    for layer in bitlinear_layers(model).values():
        if layer.weight.dtype.itemsize < 4 and id(layer.weight) not in stay:
            layer.float()  # weight, bias and their gradients, in place
    if halves := [name for name, p in model.named_parameters() if p.requires_grad and p.dtype.itemsize < 4]:
        names = f"{', '.join(halves[:3])}{', ...' if len(halves) > 3 else ''}"
        log.warning(
            "convert: %d parameters learn in half precision, which loses small updates (%s): %s", len(halves), names, WIDE
        )


def _describe_other_modules(model: nn.Module) -> str:
    """Return the classes of other modules that hold matrices: Conv1D in GPT-2, or those of experts."""
    others = (module for module in model.modules() if type(module) not in (nn.Linear, nn.Embedding))
    return ", ".join(sorted({type(m).__name__ for m in others if any(p.ndim > 1 for p in m.parameters(recurse=False))}))


def _convert_layer(name: str, old: nn.Linear, linear: Linear, settings: dict[str, Any]) -> nn.Module:
    """Return a new layer that holds the parameters of an old one. Raise ValueError if that cannot work."""
    if has_hooks(old) or not isinstance(old.weight, nn.Parameter):
        raise ValueError(f"convert: {name} has hooks or a computed weight: remove them first, or exclude the layer")
    try:
        layer = linear(old.in_features, old.out_features, old.bias is not None, device=torch.device("meta"), **settings)
    except TypeError as error:
        raise ValueError(f"convert: {error}") from error
    layer.weight, layer.bias = old.weight, old.bias
    if isinstance(layer, BitLinear):
        layer.mix = torch.tensor(0.0 if layer.warmup else 1.0, device=old.weight.device)
    return layer.train(old.training)
