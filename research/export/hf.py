"""transformers: a folder that `AutoModelForCausalLM.from_pretrained` reads as BitNetForCausalLM, with a tokenizer for text.

Packed weights are uint8 [out / 4, in], code + 1 in two bits. Bit pair g of row i holds row i of the g-th quarter of outputs.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Int8, UInt8
from safetensors.torch import save_file
from torch import Tensor

from research.data.tokenizers import write_tokenizer
from research.export.layout import Codes, Options, Source, silence_libraries, to_codes
from research.export.plain import pack_rows
from research.export.verify import PROBE, ClientResult
from research.nn.quantize import EPS
from research.run_dir import write_json

MODULES = ("transformers", "tokenizers", "accelerate")


def to_stored_scale(scale: Float[Tensor, "*ones"], packing: str) -> Float[Tensor, "1"]:
    """Return the scale as transformers stores it: its AutoBitLinear multiplies by it, its BitLinear divides by it."""
    return (scale if packing == "autobitlinear" else 1 / scale).reshape(1)


def pack_quarters(codes: Int8[Tensor, "out in"]) -> UInt8[Tensor, "quarter in"]:
    """Return codes in transformers' layout; the number of outputs must be a multiple of 4."""
    return pack_rows(codes.unflatten(0, (4, -1)).permute(1, 2, 0).flatten(1))


def write(source: Source, folder: Path, options: Options) -> list[str]:
    """Write config.json, model.safetensors and, for text, the tokenizer; return warnings.

    Raise ValueError for a model that transformers' BitNet does not compute.
    """
    packed = options.packing != "none"
    # Unpacked weights are quantized by transformers itself, which knows one method.
    method = {} if packed else {"weight_bits": 1.58, "scale_method": "absmean"}
    source.require_bitnet(f"hf --packing {options.packing}", "transformers' BitNet", **method)
    for name, layer in source.linears.items():
        if packed and layer.out_features % 4:
            raise ValueError(f"{name} has {layer.out_features} outputs: transformers packs multiples of 4; use --packing none")
    save_file(_build_tensors(source, options.packing), folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", _build_config(source, options.packing))
    max_seq_len = source.model.max_seq_len
    tokenizer = source.run.tokenizer
    special = {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.end} if tokenizer else {}
    write_json(folder / "generation_config.json", {"max_length": max_seq_len, **special})
    if not tokenizer:
        return ["the data is not text: no tokenizer is written; give the model input_ids"]
    write_tokenizer(tokenizer, folder, max_seq_len)
    return []


def _build_tensors(source: Source, packing: str) -> dict[str, Tensor]:
    """Return all tensors of the file, under transformers' names."""
    tensors = {"model.embed_tokens.weight": source.model.embed.weight, "model.norm.weight": source.model.norm.weight}
    if not source.architecture["tied"]:
        tensors["lm_head.weight"] = source.model.head.weight
    quantized = source.compute_codes()
    for name, target in source.map_modules("model.layers", 0).items():
        if name in quantized and packing != "none":
            codes, scale = quantized[name]
            tensors[f"{target}.weight"] = pack_quarters(codes)
            tensors[f"{target}.weight_scale"] = to_stored_scale(scale, packing)
        else:
            tensors[f"{target}.weight"] = source.model.get_submodule(name).get_parameter("weight")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _build_config(source: Source, packing: str) -> dict[str, Any]:
    """Return config.json."""
    numbers, tokenizer = source.architecture, source.run.tokenizer
    end = tokenizer.end if tokenizer else None
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
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
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "bitlinear" if packing == "bitlinear" else "autobitlinear",
            # online: transformers quantizes the weights in each forward
            "quantization_mode": "online" if packing == "none" else "offline",
            "modules_to_not_convert": None,
        },
    }


def read(source: Source, folder: Path, tokens: Int[Tensor, "n seq"], options: Options) -> ClientResult:
    """Run the folder with transformers as a user does, but not compiled: compiling its layers takes half a minute."""
    with silence_libraries(), torch.compiler.set_stance("force_eager"), torch.no_grad():
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        logits = torch.cat([model(part, use_cache=False).logits for part in tokens.split(16)])
        # Generation uses the cache, which the logits above do not.
        start = tokens[:1, : (tokens.shape[1] + 1) // 2]
        generated = model.generate(start, max_new_tokens=1, min_new_tokens=1, do_sample=False)
        checks = {"generate": torch.equal(generated[:, :-1], start)}
        if ours := source.run.tokenizer:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            expected = ours.encode([PROBE.encode()])[0].tolist()
            checks["tokenizer"] = tokenizer.encode(PROBE) == expected and tokenizer.decode(expected) == PROBE
            first, second = (ours.encode([text])[0].tolist() for text in (b"x1 y", b"x"))
            if len(second) < len(first) < source.model.max_seq_len:
                batch = tokenizer(["x1 y", "x"], padding=True, return_tensors="pt")
                longer = model.generate(**batch, max_new_tokens=1, min_new_tokens=1, do_sample=False)
                padded = [ours.end] * (len(first) - len(second)) + second
                checks["batch"] = longer[:, : len(first)].tolist() == [first, padded]
        return ClientResult("transformers", _read_codes(source, model, options.packing), logits, checks)


def _read_codes(source: Source, model: Any, packing: str) -> Codes:
    """Return the codes and scales that transformers' layers multiply by."""
    from transformers.integrations.bitnet import WeightQuant, unpack_weights

    result: Codes = {}
    targets = source.map_modules("model.layers", 0)
    for name in source.linears:
        layer = model.get_submodule(targets[name])
        if packing == "none":
            weight = WeightQuant.apply(layer.weight)
            scale = weight.abs().max().clamp(min=EPS)
            result[name] = to_codes(weight / scale), scale
        elif packing == "bitlinear":
            result[name] = to_codes(unpack_weights(layer.weight, torch.float32)), 1 / layer.weight_scale
        else:
            result[name] = to_codes(layer.weight), layer.weight_scale
    return result
