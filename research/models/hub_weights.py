"""The weights of a pretrained folder: all of them read, in float32, with ternary ones unpacked to masters."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from research.cli import first_line
from research.contracts import contract
from research.files.silence import silence_libraries
from research.files.weights import list_weight_files
from research.models.hub_folder import AGAIN, SAVED, read_hub_config
from research.nn.bitlinear import BitLinear
from research.run_dir import expand_path

VALUES_A_BYTE = 4  # of packed ternary weights: rows of four quarters of the outputs
Scales = dict[str, float]


def load_folder(folder: str, load_weights: bool = True) -> tuple[nn.Module, Scales, list[str]]:
    """Return the model of a folder, the scales of its ternary weights by the names of their layers, and its other layers.

    The last are the linear layers that a ternary folder keeps in full precision; any other folder has none to name.

    Nothing is downloaded, and no code of the folder runs. Raise ValueError where a weight is missing or is not a number:
    transformers would draw it at random.
    """
    settings = read_hub_config(folder, load_weights)
    from transformers import AutoConfig, AutoModelForCausalLM  # slow to import

    path, options = expand_path(folder), dict[str, Any](local_files_only=True, trust_remote_code=False)
    try:
        with silence_libraries():
            config = AutoConfig.from_pretrained(path, **options)
            if quantization := settings.get("quantization_config"):
                del config.quantization_config
            if not load_weights:
                net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
                return net, {}, list_full_precision(net, quantization, {})
            options |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
            if not quantization:
                net, info = AutoModelForCausalLM.from_pretrained(path, **options)
                scales = Scales()
            else:
                weights, scales = unpack(dict(iter_tensors(path)), quantization)
                with torch.device("meta"):
                    kind = type(AutoModelForCausalLM.from_config(config))
                net, info = kind.from_pretrained(None, state_dict=weights, **options)
    except UnpicklingError as error:
        message = "its pytorch_model.bin holds more than tensors, which could run code"
        raise ValueError(f"model.folder={folder} cannot be read: {message}\ngive a folder with safetensors files") from error
    except (OSError, ValueError, RuntimeError, SafetensorError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"model.folder={folder} cannot be read: {explain(error, settings)}") from error
    check_loaded(folder, net, info, settings)
    return net, scales, list_full_precision(net, quantization, scales)


def list_full_precision(net: nn.Module, quantization: Mapping[str, Any] | None, scales: Scales) -> list[str]:
    """Return the linear layers that a ternary folder keeps in full precision: without a scale, or as its config.json says."""
    if not quantization:
        return []
    from transformers.quantizers.quantizers_utils import should_convert_module

    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    kept = quantization.get("modules_to_not_convert")
    return [name for name in names if (name not in scales if scales else not should_convert_module(name, kept))]


@contract
def explain(error: Exception, settings: Mapping[str, Any]) -> str:
    """Return why transformers cannot read a folder, and what can be done."""
    text, kind = str(error.__cause__ or error), settings["model_type"]
    if "trust_remote_code" in text or (settings.get("auto_map") and "does not recognize" in text):
        return f"{kind} is no model of transformers, and code of a folder is not run here\ngive a model that transformers has"
    if "does not recognize" in text:
        return f"transformers has no {kind}\ninstall a newer one, or give another model"
    if "Unrecognized configuration class" in text or "for this kind of AutoModel" in text:
        named = ", ".join(map(str, settings.get("architectures") or [])) or kind
        return f"{named} is no language model that predicts the next token\ngive a folder of one, as of Llama or GPT-2"
    return f"{first_line(error)}\n{SAVED}"


def check_loaded(folder: str, net: nn.Module, info: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError for weights that a folder lacks, for others that the model does not take, and for NaN."""
    kind, named = type(net).__name__, ", ".join(map(str, settings.get("architectures") or []))
    for problem, key in (
        ("lacks", "missing_keys"),
        ("has for another size", "mismatched_keys"),
        ("has also", "unexpected_keys"),
    ):
        names = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info[key])
        if not names:
            continue
        listed = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        of_other = f", as a folder of {named}" if named not in ("", kind) else ""
        why = f"{problem} {listed}, which {kind} {'does not have' if key == 'unexpected_keys' else 'needs'}{of_other}"
        fix = f"give a folder of {kind}" if of_other else f"give a whole one, or write it again: {AGAIN}"
        raise ValueError(f"model.folder={folder} {why}\n{fix}")
    for name, p in net.named_parameters():
        if not p.isfinite().all():
            raise ValueError(f"model.folder={folder}: {name} holds NaN or infinity\ngive a folder whose weights are numbers")


def iter_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder's safetensors files by name."""
    for name in list_weight_files(path):
        with safe_open(name, framework="pt") as file:
            yield from ((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118 - it is no dict


@contract
def unpack(tensors: dict[str, Tensor], settings: Mapping[str, Any]) -> tuple[dict[str, Tensor], Scales]:
    """Return the weights that ternary ones stand for, in float32, and the scale of each by the name of its layer.

    transformers' BitLinear divides by weight_scale, its AutoBitLinear multiplies its output by it, the bias too; `online` holds
    masters without one.
    """
    divides, scales, weights = settings.get("linear_class", "bitlinear") == "bitlinear", Scales(), dict[str, Tensor]()
    for key, tensor in tensors.items():
        name = key.removesuffix(".weight")
        if key.endswith(".weight_scale"):
            continue
        if key.endswith(".weight") and (scale := tensors.get(f"{name}.weight_scale")) is not None:
            scales[name] = 1 / float(scale.float()) if divides else float(scale.float())
            tensor = (unpack_codes(tensor) if tensor.dtype == torch.uint8 else tensor.float()) * scales[name]
        elif tensor.dtype == torch.uint8:
            raise ValueError(f"{key} is packed and has no scale")
        weights[key] = tensor.float() if tensor.is_floating_point() else tensor
    for name in () if divides else scales:  # which multiplies the bias too
        if f"{name}.bias" in weights:
            weights[f"{name}.bias"] = weights[f"{name}.bias"] * scales[name]
    return weights, scales


def unpack_codes(packed: Tensor) -> Tensor:
    """Return the codes -1, 0 and 1 of packed ones, [out / 4, in] uint8: two bits each, the lowest of the first quarter."""
    return torch.cat([(packed >> shift) & 3 for shift in range(0, 2 * VALUES_A_BYTE, 2)]).float() - 1


@torch.no_grad()
@contract
def fit_masters(folder: str, layers: Mapping[str, BitLinear], scales: Scales) -> None:
    """Let ternary weights that were unpacked keep their scale as masters, in place.

    The scale of a BitLinear is the mean of magnitudes (absmean), where a zero counts too: the others grow by its share.
    Raise ValueError where the settings of a layer make other weights of them.
    """
    for name, scale in scales.items():
        if (layer := layers.get(name)) is None:
            continue  # it stays in full precision, with the values that it had
        values = layer.weight.clone()
        if layer.quantizer.scale_method == "absmean":
            layer.weight /= (values != 0).float().mean().clamp(min=1e-9)
        codes, own_scale = layer.get_quantized_weight()
        if not torch.allclose(codes.float() * own_scale, values, rtol=1e-4, atol=1e-5 * scale):
            message = f"its ternary weights, as {name}, have one scale each, and model.linear makes other ones of them"
            fix = "give linear=bitnet as it is: absmean of 1.58 bits a tensor"
            raise ValueError(f"model.folder={folder}: {message}\n{fix}")
