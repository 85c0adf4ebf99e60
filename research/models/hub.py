"""Any causal language model of transformers, with its linear layers replaced by BitLinears."""

import copy
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from research.cli import first_line
from research.contracts import contract
from research.data.spec import Tokens
from research.models.hub_folder import COMPANIONS, check_seq_len, read_hub_config
from research.models.hub_weights import fit_masters, load_folder
from research.nn.bitlinear import BitLinear, Linear, bitlinear_layers, convert_linears
from research.nn.blocks import DEFAULT_EXCLUDE
from research.ranges import ExistingPath, check_settings
from research.rules import check_extra, enforce
from research.run_dir import expand_path, replace_text

log = logging.getLogger(__name__)
PROBE_LENGTH = 8  # symbols of the test whether a model is causal


class Hub(nn.Module):
    """A model of transformers behind this program's interface.

    `folder` is a local folder that save_pretrained wrote: architecture and weights, loaded in float32. Without it
    `model_type` and `fields`, both in transformers' terms, describe a new model. `keep_blocks` are numbers of blocks that stay
    in full precision, from the first, 0, or the last, -1. Raise ValueError if transformers is missing or refuses the settings,
    if the model is too small for the data, or if it is not causal.
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
        keep_blocks: Sequence[int] = (),
    ) -> None:
        check_settings("model", Hub.__init__.__annotations__, locals())
        super().__init__()
        if shape.num_classes:
            fix = "give model=bitnet or model=transformer, which tell classes"
            raise ValueError(
                f"model=hub predicts tokens, and each text of these data has one of {shape.num_classes} classes\n{fix}"
            )
        enforce(check_extra("model=hub", "transformers", "hub"))
        scales, full = dict[str, float](), list[str]()
        if folder:
            check_seq_len(folder, read_hub_config(folder, load_weights), shape.seq_len)
            net, scales, full = load_folder(folder, load_weights)
        else:
            net = _build_from_config(model_type, fields or {}, shape)
        _check_sizes(net, shape, folder)
        self.net: Any = net
        self.folder, self.vocab_size, self.full_precision = folder, shape.vocab_size, full
        self.max_seq_len = int(getattr(net.config, "max_position_embeddings", None) or shape.seq_len)
        kept = _list_kept(net, keep_blocks)
        if linear and (linear.func if isinstance(linear, partial) else linear) is not nn.Linear:
            replaced = replace_conv1d(net)
            if replaced and load_weights and folder:
                log.info("model=hub: %d Conv1D layers are linear ones now, which compute the same", len(replaced))
            excluded = [exclude] if isinstance(exclude, str) else exclude
            self.net = convert_linears(net, include, [*excluded, *kept, *full], linear)
            fit_masters(folder or "", bitlinear_layers(self.net), scales)
            _warn_about_unconverted(self.net)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next symbol at every position."""
        return self.net(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]

    @contract
    def save_config(self, folder: Path) -> None:
        """Write config.json and what came with it, as the tokenizer with the template of a chat: all but the weights.

        It also names the layers that a ternary folder keeps in full precision, so the model is built again as it is.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.net.config)
        if self.full_precision:
            config.quantization_config = {"quant_method": "bitnet", "modules_to_not_convert": self.full_precision}
        replace_text(folder / "config.json", config.to_json_string(use_diff=False))
        for file in [expand_path(self.folder) / name for name in COMPANIONS] if self.folder else []:
            if file.is_file() and not (folder / file.name).exists():  # a resumed run has them, or is built from them
                shutil.copyfile(file, folder / file.name)


@contract
def load_as_saved(shape: Tokens, folder: str) -> Hub:
    """Return the model of a folder as transformers computes it: with ternary layers where it has them."""
    is_ternary = bool(read_hub_config(folder).get("quantization_config"))
    return Hub(shape, folder=folder, linear=BitLinear if is_ternary else None)


def _check_sizes(net: Any, shape: Tokens, folder: str | None) -> None:
    """Raise ValueError for a model with fewer symbols or positions than the data, and for one that is not causal."""
    for name, needed in (("vocab_size", shape.vocab_size), ("max_position_embeddings", shape.seq_len)):
        if (size := getattr(net.config, name, None)) is not None and size < needed:
            fix = "give another model or other data"
            fix = f"{fix}, tokenized by the model's own tokenizer" if folder and name == "vocab_size" else fix
            raise ValueError(f"model=hub: {name} is {size}, the data has {needed}: {fix}")
    if _looks_ahead(net, min(shape.seq_len, PROBE_LENGTH), shape.vocab_size):
        reason = f"model=hub: {type(net).__name__} is not causal: it sees the symbols that it is to predict"
        fix = "give another model, or set is_decoder: in its config.json, or with +model.fields.is_decoder=true"
        raise ValueError(f"{reason}\n{fix}")


def _list_kept(net: nn.Module, keep_blocks: Sequence[int]) -> list[str]:
    """Return the patterns of blocks that stay in full precision. Raise ValueError for a number that no block has."""
    if not keep_blocks:
        return []
    setting = f"model.keep_blocks={list(keep_blocks)}"
    lists = {name: module for name, module in net.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{setting}: {type(net).__name__} has no list of blocks: give model.exclude")
    name = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    depth = len(lists[name])
    for index in keep_blocks:
        if type(index) is not int or not -depth <= index < depth:
            raise ValueError(f"{setting}: {index} is no block: give numbers from {-depth} to {depth - 1}")
    return [f"{name}.{index % depth}.*" for index in keep_blocks]


def replace_conv1d(net: nn.Module) -> list[str]:
    """Replace, in place, each Conv1D of transformers by an nn.Linear of the same weights; return their names.

    A Conv1D (Radford et al. 2018) is a linear layer whose weight is [in, out].
    """
    from transformers.pytorch_utils import Conv1D

    layers = {name: module for name, module in net.named_modules() if type(module) is Conv1D}
    for name, old in layers.items():
        ins, outs = old.weight.shape
        new = nn.Linear(ins, outs, device=torch.device("meta"))
        new.weight, new.bias = nn.Parameter(old.weight.detach().t().contiguous()), old.bias
        net.set_submodule(name, new.train(old.training))
    return [*layers]


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
