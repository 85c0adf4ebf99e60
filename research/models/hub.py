"""Any causal language model of transformers, with its linear layers replaced by BitLinears."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from research.cli import first_line
from research.data.spec import Tokens
from research.nn.bitlinear import DEFAULT_EXCLUDE, Linear, bitlinear_layers, convert_linears
from research.ranges import ExistingPath, check_settings
from research.run_dir import expand_path

log = logging.getLogger(__name__)
PROBE_LENGTH = 8  # symbols of the test whether a model is causal


class Hub(nn.Module):
    """A model of transformers behind this program's interface.

    `folder` is a local folder that save_pretrained wrote: architecture and weights, loaded in float32. Without it
    `model_type` and `fields`, both in transformers' terms, describe a new model. Raise ValueError if transformers is missing
    or refuses the settings, if the model is too small for the data, or if it is not causal.
    """

    def __init__(
        self,
        shape: Tokens,
        model_type: str = "llama",
        fields: Mapping[str, Any] | None = None,
        folder: ExistingPath | None = None,
        load_weights: bool = True,  # false: the architecture of the folder alone
        linear: Linear | None = None,  # replaces nn.Linear; nn.Linear itself or None: full precision
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = DEFAULT_EXCLUDE,
    ) -> None:
        check_settings("model", Hub.__init__.__annotations__, locals())
        super().__init__()
        if shape.num_classes:
            fix = "give model=bitnet or model=transformer, which tell classes"
            raise ValueError(
                f"model=hub predicts tokens, and each text of these data has one of {shape.num_classes} classes\n{fix}"
            )
        try:
            net = _load_from_folder(folder, load_weights) if folder else _build_from_config(model_type, fields or {}, shape)
        except ModuleNotFoundError as error:  # transformers is an extra
            raise ValueError(f"model=hub needs {error.name}: pip install -e '.[hub]'") from error
        for name, needed in (("vocab_size", shape.vocab_size), ("max_position_embeddings", shape.seq_len)):
            if (size := getattr(net.config, name, None)) is not None and size < needed:
                raise ValueError(f"model=hub: {name} is {size}, the data has {needed}: give another model or other data")
        if _looks_ahead(net, min(shape.seq_len, PROBE_LENGTH), shape.vocab_size):
            reason = f"model=hub: {type(net).__name__} is not causal: it sees the symbols that it is to predict"
            fix = "give another model, or set is_decoder: in its config.json, or with +model.fields.is_decoder=true"
            raise ValueError(f"{reason}\n{fix}")
        self.net: nn.Module = net
        if linear and (linear.func if isinstance(linear, partial) else linear) is not nn.Linear:
            self.net = convert_linears(net, include, exclude, linear)
            _warn_about_unconverted(self.net)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next symbol at every position."""
        return self.net(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]


def _build_from_config(model_type: str, fields: Mapping[str, Any], shape: Tokens) -> nn.Module:
    """Return a new model, for the symbols and positions of the data unless `fields` say otherwise."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM  # slow to import

    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        similar = _suggest(model_type, CONFIG_MAPPING)
        raise ValueError(f"model.model_type={model_type}: transformers has no such model{similar}") from error
    names = {*known.to_dict(), *known.attribute_map}
    for name in fields.keys() - names:  # transformers would accept it silently and ignore it
        raise ValueError(f"model.fields.{name}: {model_type} has no such field{_suggest(name, names)}")
    defaults = {"vocab_size": shape.vocab_size, "max_position_embeddings": shape.seq_len, "pad_token_id": None}
    fields = {name: value for name, value in defaults.items() if name in names} | dict(fields)
    try:
        config = AutoConfig.for_model(model_type, **fields)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]
    except Exception as error:  # its checks of configurations raise many classes
        why = first_line(error.__cause__ or error)
        raise ValueError(f"model.model_type={model_type}, model.fields={fields}: {why}") from error


def _load_from_folder(folder: str, load_weights: bool) -> nn.Module:
    """Return the model of a local folder, or with new weights one of its architecture; nothing is downloaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = expand_path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"model.folder={folder} has no config.json: give a local folder that save_pretrained wrote")
    try:
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "dtype": torch.float32}
        if not load_weights:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]
        return AutoModelForCausalLM.from_pretrained(path, **options)  # type: ignore[no-any-return]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model.folder={folder} cannot be read: {first_line(error)}") from error


@torch.no_grad()
def _looks_ahead(net: nn.Module, seq_len: int, vocab_size: int) -> bool:
    """Return whether another last symbol changes earlier logits, by more than sums in another order can."""
    tokens = torch.arange(seq_len)[None] % vocab_size
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % vocab_size
    was_training = net.training
    net.eval()
    try:
        before, after = (net(input_ids=ids, use_cache=False).logits[:, :-1] for ids in (tokens, other))
    except Exception as error:  # its forward pass may raise anything
        raise ValueError(f"model=hub: {type(net).__name__} fails on {seq_len} symbols: {first_line(error)}") from error
    finally:
        net.train(was_training)
    return bool((after - before).norm() > 1e-5 * before.norm())


def _warn_about_unconverted(net: Any) -> None:
    """Warn if most weights between embedding and head are not in BitLinears, as those of experts, which are no nn.Linear."""
    ends = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    ends |= {id(head.weight) for head in [net.get_output_embeddings()] if head is not None}
    layers = bitlinear_layers(net)
    sizes = {name: p.numel() for name, p in net.named_parameters() if p.ndim > 1 and id(p) not in ends}
    stay = {name: size for name, size in sizes.items() if name.removesuffix(".weight") not in layers}
    if 2 * sum(stay.values()) > sum(sizes.values()):
        share, largest = 1 - sum(stay.values()) / sum(sizes.values()), max(stay, key=stay.__getitem__)
        message = "model=hub: only %.0f %% of the weights between embedding and head are in BitLinears; the largest other is %s"
        log.warning(message, 100 * share, largest)


def _suggest(name: str, known: Iterable[str]) -> str:
    return "".join(f"; did you mean {match}?" for match in get_close_matches(name, known, n=1))
