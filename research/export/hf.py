"""transformers: a folder that `AutoModelForCausalLM.from_pretrained` reads, with a tokenizer for text.

Our Transformer becomes a BitNetForCausalLM or a LlamaForCausalLM, a hub model stays what it is. Packed weights are uint8
[out / 4, in], code + 1 in two bits. Bit pair g of row i holds row i of the g-th quarter of outputs.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from safetensors.torch import save_file
from torch import Tensor

from research.contracts import contract
from research.export.layout import (
    Codes,
    Options,
    Source,
    quantize_layer,
    split_weight,
    spread_scale,
    to_codes,
)
from research.export.nets import SPECIAL, Net, choose_special, describe_net
from research.export.plain import pack_rows
from research.export.tokens import find_changes, find_own_tokenizer, write_for_transformers
from research.export.verify import MAX_DIVERGENCE, PROBE, Client, ClientResult
from research.files.silence import silence_libraries
from research.models.hub import Hub
from research.nn.quantize import EPS
from research.run_dir import MODEL_FOLDER, expand_path, read_json, write_json

MODULES = ("transformers", "tokenizers", "accelerate")
# What the layers that transformers' BitNet puts in the place of nn.Linear compute, and what unpacked ones do besides.
PACKED_SETTINGS: dict[str, object] = {"activation_bits": 8, "activation_granularity": "token", "granularity": "tensor"}
ONLINE_SETTINGS: dict[str, object] = {"weight_bits": 1.58, "scale_method": "absmean"}
AUTO_WARNING = "transformers loads autobitlinear in float32 alone, and does not save it again; bitlinear does both"
PLAIN_WARNING = "plain layers multiply by code * scale and do not round activations: the check's values are the difference"


def to_stored_scale(scale: Float[Tensor, "*ones"], packing: str) -> Float[Tensor, "1"]:
    """Return the scale as transformers stores it: its AutoBitLinear multiplies by it, its BitLinear divides by it."""
    return (scale if packing == "autobitlinear" else 1 / scale).reshape(1)


def pack_quarters(codes: Int8[Tensor, "out in"]) -> UInt8[Tensor, "quarter in"]:
    """Return codes in transformers' layout; the number of outputs must be a multiple of 4."""
    return pack_rows(codes.unflatten(0, (4, -1)).permute(1, 2, 0).flatten(1))


@contract
def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write config.json, model.safetensors, generation_config.json and, for text, the tokenizer; return warnings.

    Raise ValueError for a packing that cannot hold a layer.
    """
    source.require_format("hf")
    net = describe_net(source)
    packing, warnings = choose_packing(source, net, options)
    tensors, config = build_tensors(source, net, packing), net.config | build_quantization(source, net, packing)
    if isinstance(source.model, Hub):
        save_hub(source.net, tensors, folder)
        config |= {"architectures": [type(source.net).__name__], "dtype": "float32"}
    else:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", build_generation(source))
    if not source.run.tokenizer:
        return [*warnings, "the data is not text: no tokenizer is written; give the model input_ids"]
    warnings += write_for_transformers(source.run, folder, source.max_seq_len)
    return [*warnings, *find_changes(source.run, folder)]


def choose_packing(source: Source, net: Net, options: Options) -> tuple[str, list[str]]:
    """Return the packing, empty for a model in full precision, and warnings. Raise ValueError for one that does not fit."""
    if not source.linears:
        if options.packing:
            raise ValueError(f"--packing {options.packing} is for ternary weights, and RUN is in full precision; leave it out")
        return "", []
    packing = options.packing or "bitlinear"
    if packing == "plain":
        return packing, [PLAIN_WARNING]
    if not (reason := find_misfit(source, net, packing)):
        return packing, [AUTO_WARNING] if packing == "autobitlinear" else []
    if options.packing:
        fix = "use --packing plain, or --format torch or onnx, which hold every ternary layer"
        raise ValueError(f"{reason}; {fix}")
    return "plain", [f"{reason}: so it is written as with --packing plain", PLAIN_WARNING]


def find_misfit(source: Source, net: Net, packing: str) -> str:
    """Return why transformers' own ternary layers cannot take the weights; nothing where they can."""
    for name, layer in source.linears.items():
        for setting, known in (PACKED_SETTINGS | (ONLINE_SETTINGS if packing == "none" else {})).items():
            if (value := getattr(layer.quantizer, setting)) != known:
                return f"model.linear.{setting}={value}: --packing {packing} holds {known} only ({name})"
        if net.names[name] in net.transposed:
            return f"{name} is a Conv1D in transformers, which quantizes nn.Linear alone"
        if packing != "none" and layer.out_features % 4:
            return f"{name} has {layer.out_features} outputs: transformers packs multiples of 4"
    return ""


def build_tensors(source: Source, net: Net, packing: str) -> dict[str, Tensor]:
    """Return all tensors of the file, under transformers' names."""
    # Of a hub model also its buffers; save_pretrained leaves out a tied head.
    tensors = source.net.state_dict() if isinstance(source.model, Hub) else dict(net.tensors)
    for target in net.transposed:
        tensors[f"{target}.weight"] = tensors[f"{target}.weight"].t().contiguous()
    for name, layer in source.linears.items():
        target = net.names[name]
        codes, scale = quantize_layer(layer)
        if packing == "plain":
            weight = codes * spread_scale(scale, layer.weight)
            tensors[f"{target}.weight"] = weight.t().contiguous() if target in net.transposed else weight
        elif packing != "none":
            tensors[f"{target}.weight"] = pack_quarters(codes)
            tensors[f"{target}.weight_scale"] = to_stored_scale(scale, packing)
            if packing == "autobitlinear" and layer.bias is not None:
                tensors[f"{target}.bias"] = layer.bias / scale.reshape(1)  # it multiplies by the scale after the bias
    return tensors


def build_quantization(source: Source, net: Net, packing: str) -> dict[str, Any]:
    """Return the entry of config.json by which transformers puts its ternary layers in."""
    if packing in ("", "plain"):
        return {}
    return {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "bitlinear" if packing == "bitlinear" else "autobitlinear",
            # online: transformers quantizes the weights in each forward
            "quantization_mode": "online" if packing == "none" else "offline",
            # null: all but the head
            "modules_to_not_convert": list(net.other_linears) if isinstance(source.model, Hub) else None,
        }
    }


def save_hub(net: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the weights as save_pretrained does. It refuses some generation configurations that it has loaded: not here."""
    original = net.generation_config
    try:
        with silence_libraries():
            net.generation_config = type(original)()
            net.save_pretrained(folder, state_dict=tensors)
    finally:
        net.generation_config = original


def build_generation(source: Source) -> dict[str, Any]:
    """Return generation_config.json: a hub model's original, with the special tokens that the tokenizer has."""
    original: dict[str, Any] = {"max_length": source.max_seq_len}
    if isinstance(source.model, Hub):
        original = {key: source.net.config.to_dict().get(key) for key in SPECIAL} | read_generation(source)
    return {key: value for key, value in (original | choose_special(source, original)).items() if value is not None}


def read_generation(source: Source) -> dict[str, Any]:
    """Return the generation_config.json of a pretrained folder; without one what transformers takes."""
    folders = [source.run.folder / MODEL_FOLDER, *([expand_path(folder)] if (folder := source.model.folder) else [])]
    if files := [folder / "generation_config.json" for folder in folders if (folder / "generation_config.json").is_file()]:
        return read_json(files[0])
    return dict(json.loads(source.net.generation_config.to_json_string()))


@contract
def load_model(folder: Path) -> Any:
    """Return transformers' model of a folder."""
    from transformers import AutoModelForCausalLM

    with silence_libraries():
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@contract
def open_client(folder: Path) -> Client:
    """Return transformers with the folder's model."""
    return make_client(load_model(folder))


def make_client(model: Any) -> Client:
    """Return transformers with a model, not compiled: compiling its layers takes half a minute."""

    def compute_logits(tokens: Tensor) -> Tensor:
        with silence_libraries(), torch.compiler.set_stance("force_eager"), torch.no_grad():
            return model(tokens, use_cache=False).logits  # type: ignore[no-any-return]

    return compute_logits


@contract
def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """Run the folder with transformers as a user does, and as an evaluation of the folder does."""
    model = load_model(folder)
    logits = torch.cat([*map(make_client(model), tokens.split(16))])
    with silence_libraries(), torch.compiler.set_stance("force_eager"), torch.no_grad():
        # Generation uses the cache, which the logits above do not.
        start = tokens[:1, : (tokens.shape[1] + 1) // 2]
        checks = {"generate": torch.equal(generate_one(model, input_ids=start).sequences[:, :-1], start)}
        if source.run.tokenizer:
            checks |= check_tokenizer(source, model, folder)
        return ClientResult("transformers", read_codes(source, model), logits, checks)


def generate_one(model: Any, **inputs: Tensor) -> Any:
    """Return what transformers' generate gives for one token, with its logits."""
    one = {"max_new_tokens": 1, "min_new_tokens": 1, "do_sample": False, "num_beams": 1}
    return model.generate(**inputs, **one, output_logits=True, return_dict_in_generate=True)


@contract
def check_tokenizer(source: Source, model: Any, folder: Path) -> dict[str, bool]:
    """Return whether the folder's tokenizer gives the tokens that it should, and a padded batch what each text gives alone."""
    from transformers import AutoTokenizer

    ours = source.run.tokenizer
    assert ours
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    probe = PROBE if ours.is_byte_level else PROBE.replace("\u2581", "_")  # which stands for a space there
    own, fits = find_own_tokenizer(source.run), True
    for text in (probe, probe.strip()):  # before some texts a space would be put
        expected = ours.encode([text.encode()])[0].tolist()
        # The model's own tokenizer may put tokens around a text, and read the names of special ones in a prompt as these.
        if own:
            fits &= tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) == expected
        else:
            fits &= tokenizer.encode(text) == expected and tokenizer.decode(expected) == text
    checks = {"tokenizer": fits}
    texts = ["x1 y", "x"]
    lengths = [len(tokenizer.encode(text)) for text in texts]
    if lengths[1] < lengths[0] < source.max_seq_len:
        alone = torch.cat([generate_one(model, **tokenizer(text, return_tensors="pt")).logits[0] for text in texts])
        together = generate_one(model, **tokenizer(texts, padding=True, return_tensors="pt")).logits[0]
        divergence = F.kl_div(together.log_softmax(-1), alone.log_softmax(-1), log_target=True, reduction="batchmean")
        checks["batch"] = bool(divergence <= MAX_DIVERGENCE)
    return checks


@contract
def read_codes(source: Source, model: Any) -> Codes:
    """Return the codes and scales that transformers' layers multiply by."""
    from transformers.integrations.bitnet import AutoBitLinear, BitLinear, WeightQuant, unpack_weights

    result: Codes = {}
    net = describe_net(source)
    for name, ours in source.linears.items():
        layer, target = model.get_submodule(net.names[name]), net.names[name]
        if isinstance(layer, AutoBitLinear) and layer.online_quant:
            weight = WeightQuant.apply(layer.weight)
            scale = weight.abs().max().clamp(min=EPS)
            result[name] = to_codes(weight / scale), scale
        elif isinstance(layer, AutoBitLinear):
            result[name] = to_codes(layer.weight), layer.weight_scale
        elif isinstance(layer, BitLinear):
            result[name] = to_codes(unpack_weights(layer.weight, torch.float32)), 1 / layer.weight_scale
        else:
            weight = layer.weight.t() if target in net.transposed else layer.weight
            result[name] = split_weight(weight, quantize_layer(ours)[1])
    return result
