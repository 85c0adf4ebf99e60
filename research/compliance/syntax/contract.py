"""The checker's own contract: this package stands alone, so it cannot have the one of the house around it."""

from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin

Target = TypeVar("Target", bound=Callable[..., Any])


def contract(target: Target) -> Target:
    """Return a function that raises TypeError where an argument or the result is not of the class of its annotation."""
    code = target.__code__
    kinds = {name: list_classes(annotation) for name, annotation in target.__annotations__.items()}
    names = code.co_varnames[: code.co_argcount]

    @wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if not isinstance(value, kinds.get(name, object)):
                raise TypeError(f"{target.__qualname__} takes {name} as {target.__annotations__[name]}; got {value!r}")
        result = target(*args, **kwargs)
        if not isinstance(result, kinds.get("return", object)):
            raise TypeError(f"{target.__qualname__} returns {target.__annotations__['return']}; got {result!r}")
        return result

    return cast(Target, call)


def list_classes(annotation: Any) -> tuple[type, ...]:
    """Return the classes that an annotation names; object where one of them is none, as a type variable."""
    parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    kinds = [type(None) if part is None else get_origin(part) or part for part in parts]
    return tuple(kinds) if all(isinstance(kind, type) for kind in kinds) else (object,)
