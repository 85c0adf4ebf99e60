"""What stands in front of any torch optimizer class, and does something to the gradients before its step.

What comes of both is a real optimizer, of a class that is made when it is asked for: state, groups and saving are the base's.
"""

from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from research import rules

COMBINED_CLASSES: dict[tuple[type, type], type[Optimizer]] = {}  # by front and base: two optimizers of one kind have one class


class GradientTransform(Optimizer):
    """Stands before an optimizer class in the bases of `made`."""

    prefix: ClassVar[str] = ""  # of the name of the class that is made
    found_inf: Tensor | None = None  # 1: leave this update out; a fused base does
    _step_supports_amp_scaling = False  # a fused base would hand us scaled gradients: let the scaler unscale first

    @property
    def supports_found_inf(self) -> bool:
        """Whether a step leaves everything alone where `found_inf` is 1: a fused base does."""
        return all(group.get("fused") for group in self.param_groups)

    def step_base(self) -> None:
        """The base's own: torch wraps a class's step in hooks once a plain object of it was made, and ours has its own."""
        function: Any = super().step.__func__  # type: ignore[attr-defined]
        (function.__wrapped__ if getattr(function, "hooked", False) else function)(self)

    def __reduce__(self) -> Any:
        """The class is made, not written down: pickle is told what of."""
        front, base = type(self).__bases__
        return _create_blank, (front, base), self.__getstate__()


def wrap_optimizer(
    transform: type[GradientTransform], base: partial[Optimizer], groups: list[dict[str, Any]], lr: float
) -> Optimizer:
    """An optimizer of the class of both, as GrokfastAdamW. Raises ValueError where nothing can stand in front of `base`."""
    kind: Any = base.func
    is_optimizer = isinstance(kind, type) and issubclass(kind, Optimizer)
    rules.enforce(rules.check_filter_base(getattr(kind, "__qualname__", str(kind)), is_optimizer))
    rules.enforce(*map(rules.check_base_setting, base.keywords))
    optimizer = combine_classes(transform, kind)(groups, lr=lr, **base.keywords)  # type: ignore[call-arg]
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # fused bases switch it on in __init__
    return optimizer


def combine_classes(transform: type[GradientTransform], base: type[Optimizer]) -> type[Optimizer]:
    """The class of both."""
    bases = transform, base
    if bases not in COMBINED_CLASSES:
        COMBINED_CLASSES[bases] = type(f"{transform.prefix}{base.__name__}", bases, {})
    return COMBINED_CLASSES[bases]


def _create_blank(transform: type[GradientTransform], base: type[Optimizer]) -> Optimizer:
    """One that pickle fills."""
    kind = combine_classes(transform, base)
    return kind.__new__(kind)
