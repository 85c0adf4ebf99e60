"""The plain run that a fine-tuned one merges into, and what is lost where there is none."""

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import nn

from research.composition.recorded import load_config
from research.contracts import contract
from research.data.spec import Split
from research.data.splits import spread_evenly
from research.finetune.side import list_adapters, merge_side
from research.load import TrainedRun, instantiate, load_run
from research.losses import make_plain
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.options.finetuning import get_kind, is_beside
from research.run_dir import MODEL_FOLDER, TOKENIZER_FOLDER, RunConfig, Summary, read_summary, replace_text
from research.training.checkpoint import Snapshot, commit, describe_structure, get_weights, hash_weights
from research.training.evaluate import evaluate
from research.training.manifest import Manifest, read_manifest

COPIED_FOLDERS = (TOKENIZER_FOLDER, MODEL_FOLDER)  # of the run: its tokenizer, and the config.json of a hub model


@dataclass(frozen=True)
class Plain:
    """A fine-tuned run, its plain model, and the plain configuration."""

    kind: str  # of fine-tuning
    run: TrainedRun
    base: str | None  # where its base is now
    model: nn.Module
    config: dict[str, Any]


@contract
def build_plain(run: str, base: str | None, num_samples: int) -> tuple[Plain, dict[str, str]]:
    """Return the plain model of a run, and what is to be said of it.

    Raise ValueError where its adapters are beside ternary layers, with what would be lost.
    """
    trained = load_run(run, base)
    recorded = load_config(trained.checkpoint)[0]
    config, lines, model = cast(dict[str, Any], OmegaConf.to_container(trained.config)), dict[str, str](), trained.model
    if is_beside(recorded):
        model = merge_side(copy.deepcopy(model))
        lines = measure_side(trained, model, num_samples)
        config["finetune"] = None
    return Plain(get_kind(recorded), trained, base, model, config), lines


@torch.no_grad()
def measure_side(trained: TrainedRun, merged: nn.Module, num_samples: int) -> dict[str, str]:
    """Return how far outputs on held-back samples are from those before a merge into layers of full precision.

    Raise ValueError for ternary layers, with the share of the adapters that the rounding leaves, and val/loss before and after.
    """
    held_back = trained.data.val
    inputs, targets = held_back[spread_evenly(min(num_samples, len(held_back)), len(held_back))]
    split = Split(inputs, targets)
    base = remove_adapters(copy.deepcopy(trained.model))
    with_adapters, merged_outputs, base_outputs = (model(inputs) for model in (trained.model, merged, base))
    error, effect = (with_adapters - other for other in (merged_outputs, base_outputs))
    if not any(isinstance(layer.base_layer, BitLinear) for layer in list_adapters(trained.model).values()):
        return {"outputs off by": f"{float(error.abs().max()):.3g} at most, on {len(split)} held-back samples"}
    lost = float(error.norm() / effect.norm().clamp(min=1e-30))
    loss = make_plain(instantiate(trained.config.loss, key="loss", is_foreign=True))
    before, after, without = (evaluate(m, split, loss, len(split))["val/loss"] for m in (trained.model, merged, base))
    message = (
        f"RUN={trained.folder}: adapters beside ternary layers do not merge: the rounding leaves {max(0.0, 1 - lost):.0%}"
        f" of what they do, val/loss goes from {before:.4f} to {after:.4f} ({without:.4f} without them)"
    )
    raise ValueError(
        f"{message}\ngenerate and evaluate the run as it is, or train with finetune=inside, which merges to the bit"
    )


def remove_adapters(model: nn.Module) -> nn.Module:
    """Put the layers themselves where peft's are, in place; return the model."""
    for name, layer in list_adapters(model).items():
        model.set_submodule(name, layer.base_layer)
    return model


@contract
def write_plain(plain: Plain, folder: Path) -> None:
    """Write a run folder: configuration, checkpoint, summary, and the tokenizer or the hub model's configuration."""
    run, config = plain.run, plain.config | {"resume": {"path": None, "weights_only": False}}
    for name in COPIED_FOLDERS:
        if (run.folder / name).is_dir():
            shutil.copytree(run.folder / name, folder / name)
    digest = RunConfig(
        name=folder.name, study=str(config.get("name")), folder=folder, config=config, overrides=[], choices={}
    ).digest
    replace_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    source = read_manifest(run.checkpoint)
    identity = {
        "model": describe_structure(plain.model),
        "optimizer": "none",
        "data": source.identity["data"],
        "config": digest,
    }
    origin = {"run": str(run.folder), "checkpoint": run.checkpoint.name, "finetune": plain.kind}
    manifest = Manifest(source.step, identity, source.samples, config)
    commit(folder / "checkpoints", Snapshot(manifest, {"model": get_weights(plain.model)}, {"merged": origin}))
    count = sum(p.numel() for p in plain.model.parameters())
    sizes = {"params": count, "learning_params": count, "weights_sha256": hash_weights(plain.model), "config": digest}
    summary = read_summary(run.folder) or Summary("FINISHED", steps=source.step, shape=run.data.shape._asdict())
    replace(summary, status="FINISHED", error="", mlflow_run_id=None, **cast(Any, sizes)).write(folder)


def check_plain(folder: Path, plain: Plain) -> dict[str, str]:
    """Return what holds of the run that was written: read back, each tensor and each rounded weight is that of the trained one.

    Raise ValueError where one is not, as by a file that was changed meanwhile.
    """
    read = load_run(str(folder)).model
    checkpoint = str(plain.run.checkpoint)
    trained = plain.model if is_beside(plain.run.config) else load_run(checkpoint, plain.base, merge=False).model
    theirs, count = bitlinear_layers(trained), 0
    for name, layer in bitlinear_layers(read).items():
        other = theirs[name]
        pairs = zip(layer.quantizer.quantize_weight(layer.weight), other.quantizer.quantize_weight(other.weight), strict=True)
        if layer.quantizer != other.quantizer or not all(torch.equal(now, before) for now, before in pairs):
            raise ValueError(f"nothing is written: {name} is not the layer that was trained")
        count += 1
    own, expected = read.state_dict(), plain.model.state_dict()
    if wrong := [name for name, tensor in expected.items() if not torch.equal(own[name], tensor)]:
        raise ValueError(f"nothing is written: {wrong[0]} is not what was merged")
    return {"ternary layers": f"{count}, each with the codes and scales that were trained, to the bit"} if count else {}
