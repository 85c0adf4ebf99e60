"""A language model in the terms of transformers, in which hf and gguf write it: its config.json and its tensors by name."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from research.contracts import contract
from research.export.layout import Source
from research.export.tokens import choose_pad, find_own_tokenizer
from research.files.silence import silence_libraries
from research.models.hub import Hub

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Net:
    """What transformers knows of a model. Weights of linear layers are [out, in], also where they were a Conv1D's."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]  # each once: a tied head is the embedding
    names: dict[str, str]  # the name of a ternary layer in the run -> its name in transformers
    transposed: frozenset[str] = frozenset()  # names of linear layers whose weight is [in, out] in transformers, a Conv1D's
    other_linears: tuple[str, ...] = ()  # names of linear layers in transformers that are not ternary

    def get(self, *keys: str, default: Any = None) -> Any:
        """Return the first field of the configuration that is there and not null: architectures differ in names."""
        return next((value for key in keys if (value := self.config.get(key)) is not None), default)


@contract
def describe_net(source: Source) -> Net:
    """Return a Transformer or a Hub in transformers' terms."""
    return describe_hub(source) if isinstance(source.model, Hub) else describe_transformer(source)


def describe_hub(source: Source) -> Net:
    """Return transformers' own model; layers of its Conv1D may have become linear ones."""
    from transformers import AutoModelForCausalLM

    net = source.net
    with silence_libraries(), torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(net.config)
    names = {name: name.removeprefix("net.") for name in source.linears}
    kinds = dict(skeleton.named_modules())
    linears = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    transposed = {name for name in linears if not isinstance(kinds[name], nn.Linear)}
    others = [name for name, kind in kinds.items() if isinstance(kind, nn.Linear) and name not in names.values()]
    config: dict[str, Any] = json.loads(net.config.to_json_string(use_diff=False))
    tensors = {name: p.detach() for name, p in net.named_parameters()}
    return Net(config | choose_special(source, config), tensors, names, frozenset(transposed), tuple(others))


@contract
def choose_special(source: Source, original: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of special tokens: where the tokenizer is the model's own, the original ones and what was learnt.

    That is the end of a document, before other ends, and one token that pads. For another tokenizer the end does both.
    """
    end = source.run.tokenizer.end if source.run.tokenizer else None
    if not (own := find_own_tokenizer(source.run)):
        return {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    ends = original.get("eos_token_id")
    others = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if end not in others:
        ends = [end, *others] if others else end
    return {"bos_token_id": original.get("bos_token_id"), "eos_token_id": ends, "pad_token_id": choose_pad(source.run, own)}


def describe_transformer(source: Source) -> Net:
    """Return our Transformer as the architecture that it equals: BitNet with its norms before output projections, or Llama."""
    names = source.map_modules("model.layers")
    tensors: dict[str, Tensor] = {"model.embed_tokens.weight": source.model.embed.weight}
    tensors["model.norm.weight"] = source.model.norm.weight
    if not source.architecture["tied"]:
        tensors["lm_head.weight"] = source.model.head.weight
    modules = dict(source.model.named_modules())
    for name, target in names.items():
        if isinstance(getattr(modules[name], "weight", None), Tensor):  # an Identity has none
            tensors[f"{target}.weight"] = modules[name].get_parameter("weight")
    return Net(build_config(source), tensors, {name: names[name] for name in source.linears})


def build_config(source: Source) -> dict[str, Any]:
    """Return the config.json of our Transformer."""
    numbers = source.architecture
    kind, name = ("bitnet", "BitNetForCausalLM") if numbers["sub_norm"] else ("llama", "LlamaForCausalLM")
    return {
        "architectures": [name],
        "model_type": kind,
        "dtype": "float32",
        "vocab_size": numbers["vocab"],
        "hidden_size": numbers["dim"],
        "intermediate_size": numbers["hidden"],
        "num_hidden_layers": numbers["depth"],
        "num_attention_heads": numbers["heads"],
        "num_key_value_heads": numbers["kv_heads"],
        "hidden_act": numbers["act"],
        "max_position_embeddings": numbers["length"],
        "rms_norm_eps": numbers["eps"],
        "rope_theta": numbers["rope_base"],  # transformers 4 reads this key, 5 the next
        "rope_parameters": {"rope_type": "default", "rope_theta": numbers["rope_base"]},
        "tie_word_embeddings": numbers["tied"],
        "attention_bias": False,
        **choose_special(source, {}),
    }
