"""Any causal language model of transformers, its linear layers turned into BitLinears."""

import logging
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from research.data.spec import Tokens
from research.nn.bitlinear import DEFAULT_EXCLUDE, bitlinear_layers, convert_linears
from research.ranges import ExistingPath

log = logging.getLogger(__name__)
PROBE_LENGTH = 8  # symbols that are looked at to see whether a model is causal


class Hub(nn.Module):
    """A model of transformers behind this program's interface.

    With `folder`, a local one that save_pretrained wrote, architecture and weights come from there, in float32; else
    `model_type` and `fields`, both in transformers' words, describe a new one. Raises ValueError where transformers is
    missing, for what it does not know, and where the model is too small for the data, or sees what it is to predict.
    """

    def __init__(
        self,
        shape: Tokens,
        model_type: str = "llama",
        fields: Mapping[str, Any] | None = None,
        folder: ExistingPath | None = None,
        linear: Callable[..., nn.Module] | None = None,  # takes the place of nn.Linear; None: full precision
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = DEFAULT_EXCLUDE,
    ) -> None:
        super().__init__()
        try:
            import transformers  # here: it is an extra, and slow to import
        except ModuleNotFoundError as error:
            raise ValueError(f"model=hub needs {error.name}: pip install -e '.[hub]'") from error
        auto: Any = transformers
        net = _load_from_folder(auto, folder) if folder else _build_from_config(auto, model_type, dict(fields or {}), shape)
        held = {"vocab_size": shape.vocab_size, "max_position_embeddings": shape.seq_len}
        for name, needed in held.items():
            if (room := getattr(net.config, name, None)) is not None and room < needed:
                raise ValueError(f"model=hub: {name} is {room}, the data has {needed}: give another model or other data")
        if _looks_ahead(net, min(shape.seq_len, PROBE_LENGTH), shape.vocab_size):
            told = f"model=hub: {type(net).__name__} sees the symbols that it is to predict"
            fix = "give another model, or set is_decoder in its config.json, of a new one with +model.fields.is_decoder=true"
            raise ValueError(f"{told}\n{fix}")
        self.net: nn.Module = convert_linears(net, include, exclude, linear) if linear else net
        if linear:
            _warn_about_unconverted(self.net)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the next symbol at each position."""
        return self.net(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]


def _build_from_config(transformers: Any, model_type: str, fields: dict[str, Any], shape: Tokens) -> nn.Module:
    """A model with fresh weights, for the symbols and positions of the data unless `fields` say otherwise."""
    try:
        known = transformers.AutoConfig.for_model(model_type)
    except ValueError as error:
        close = get_close_matches(model_type, transformers.CONFIG_MAPPING)
        raise ValueError(
            f"model.model_type={model_type}: transformers has none of that name{_format_suggestion(close)}"
        ) from error
    names = {*known.to_dict(), *known.attribute_map}
    for name in fields.keys() - names:  # transformers would take it, and never look at it
        raise ValueError(
            f"model.fields.{name}: {model_type} has no such field{_format_suggestion(get_close_matches(name, names))}"
        )
    defaults = {"vocab_size": shape.vocab_size, "max_position_embeddings": shape.seq_len, "pad_token_id": None}
    fields = {name: value for name, value in defaults.items() if name in names} | fields
    try:
        config = transformers.AutoConfig.for_model(model_type, **fields)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]
    except Exception as error:  # its checks of configurations raise classes of their own
        raise ValueError(
            f"model.model_type={model_type}, model.fields={fields}: {_first_line(error.__cause__ or error)}"
        ) from error


def _load_from_folder(transformers: Any, folder: str) -> nn.Module:
    """The model in a local folder. Nothing is looked for elsewhere."""
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise ValueError(f"model.folder={folder} has no config.json: give a local folder that save_pretrained wrote")
    try:
        path = Path(folder).expanduser()
        return transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)  # type: ignore[no-any-return]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model.folder={folder} cannot be read: {_first_line(error)}") from error


@torch.no_grad()
def _looks_ahead(net: nn.Module, seq_len: int, vocab_size: int) -> bool:
    """Whether another last symbol moves the logits of the positions before it, by more than sums taken in another order do."""
    tokens = torch.arange(seq_len)[None] % vocab_size
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % vocab_size
    was_training = net.training
    net.eval()
    try:
        before, after = (net(input_ids=each, use_cache=False).logits[:, :-1] for each in (tokens, other))
    except Exception as error:  # whatever its forward pass raises
        raise ValueError(f"model=hub: {type(net).__name__} cannot take {seq_len} symbols: {_first_line(error)}") from error
    finally:
        net.train(was_training)
    return bool((after - before).norm() > 1e-5 * before.norm())


def _warn_about_unconverted(net: Any) -> None:
    """Warn where most of the weights between embedding and head are no BitLinears: experts, for one, are no nn.Linear."""
    ends = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    ends |= {id(head.weight) for head in [net.get_output_embeddings()] if head is not None}
    bits = bitlinear_layers(net)
    sizes = {name: p.numel() for name, p in net.named_parameters() if p.ndim > 1 and id(p) not in ends}
    stay = {name: size for name, size in sizes.items() if name.removesuffix(".weight") not in bits}
    if 2 * sum(stay.values()) > sum(sizes.values()):
        share, largest = 1 - sum(stay.values()) / sum(sizes.values()), max(stay, key=stay.__getitem__)
        told = "model=hub: only %.0f %% of the weights between embedding and head are in BitLinears; most of the rest: %s"
        log.warning(told, 100 * share, largest)


def _format_suggestion(matches: list[str]) -> str:
    return f"; did you mean {matches[0]}?" if matches else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
