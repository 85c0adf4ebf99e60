"""Combine a transform of gradients with any torch optimizer class.

The combined class is created on first use and is a normal torch Optimizer: state, groups and saving are the base's.
"""

from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from research import rules
from research.contracts import contract
from research.optim.param_groups import OptimizerType, ParamGroups, check_base

COMBINED_CLASSES: dict[tuple[type, type], type[Optimizer]] = {}  # by transform and base: one class for all optimizers of a kind


class GradientTransform(Optimizer):
    """The first base of a combined class; the optimizer class is the second. A subclass defines `step`."""

    prefix: ClassVar[str] = ""  # of the combined class's name
    found_inf: Tensor | None = None  # 1: skip this update; a fused base does
    _step_supports_amp_scaling = False  # a fused base would hand us scaled gradients: let the scaler unscale first

    @property
    def supports_found_inf(self) -> bool:
        """Return whether a step changes nothing where `found_inf` is 1: a fused base does."""
        return all(group.get("fused") for group in self.param_groups)

    def step_base(self) -> None:
        """Call the base's step without hooks: torch wraps the step of a class once it has an instance, and ours has its own."""
        function: Any = super().step.__func__  # type: ignore[attr-defined]
        (function.__wrapped__ if getattr(function, "hooked", False) else function)(self)

    def __reduce__(self) -> Any:
        """Tell pickle the two bases: a combined class cannot be imported by name."""
        transform, base = type(self).__bases__
        return _create_blank, (transform, base), self.__getstate__()


@contract
def wrap_optimizer(
    transform: type[GradientTransform], base: partial[OptimizerType], groups: ParamGroups, lr: float
) -> Optimizer:
    """Return an optimizer of the combined class, as GrokfastAdamW. Raise ValueError if `base` cannot be combined."""
    kind: Any = base.func
    is_optimizer = isinstance(kind, type) and issubclass(kind, Optimizer)
    rules.enforce(rules.check_filter_base(getattr(kind, "__qualname__", str(kind)), is_optimizer))
    check_base(base)
    optimizer = combine_classes(transform, kind)(groups, lr=lr, **base.keywords)  # type: ignore[call-arg]
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # fused bases switch it on in __init__
    return optimizer


def combine_classes(transform: type[GradientTransform], base: type[Optimizer]) -> type[Optimizer]:
    """Return the class that inherits from both."""
    bases = transform, base
    if bases not in COMBINED_CLASSES:
        COMBINED_CLASSES[bases] = type(f"{transform.prefix}{base.__name__}", bases, {})
    return COMBINED_CLASSES[bases]


def _create_blank(transform: type[GradientTransform], base: type[Optimizer]) -> Optimizer:
    """Return an uninitialised optimizer, which pickle fills."""
    kind = combine_classes(transform, base)
    return kind.__new__(kind)
