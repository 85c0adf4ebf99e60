"""The weights that a run starts from: those of another run. Those of a pretrained folder the model has already."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from research.load import load_run
from research.run_dir import to_run_folder
from research.tracking.find import find_run
from research.training import sharding
from research.training.digests import hash_checkpoint
from research.training.manifest import DamagedError, is_checkpoint, is_intact, rank_checkpoints

log = logging.getLogger(__name__)


def take_weights(model: nn.Module, base: str | None, digest: str | None = None) -> nn.Module:
    """Give the model the weights of a run, in place, and return it; without a base return it as it is.

    `digest` is what the run has recorded of those weights. Raise ValueError where the base is not there, has no weights of that
    digest any more, or is another model.
    """
    if base is None:
        return model
    source = load_run(str(find_checkpoint(find_run(base, "finetune.base"), base, digest)))
    tensors = read_tensors(source.model, model)
    try:
        sharding.check_tensors(model.state_dict(), {name: tensor.shape for name, tensor in tensors.items()})
    except RuntimeError as error:
        why = str(error).replace("checkpoint", "base")
        fix = "give the data and the model.* settings of the base, or another finetune.base"
        raise ValueError(f"finetune.base={base} is another model than this run's: {why}\n{fix}") from None
    with torch.no_grad():
        model.load_state_dict(tensors)
    log.info("finetune: begins at %s", source.checkpoint)
    return model


def read_tensors(source: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a source as the model holds them: a Conv1D of GPT-2 has the weight of a linear layer transposed."""
    tensors = dict(source.state_dict())
    ours, theirs = ({name for name, m in net.named_modules() if type(m).__name__ == "Conv1D"} for net in (model, source))
    return tensors | {f"{name}.weight": tensors[f"{name}.weight"].t() for name in ours ^ theirs if f"{name}.weight" in tensors}


def find_checkpoint(path: Path, base: str, digest: str | None) -> Path:
    """Return the newest checkpoint of a run, or that with the digest; of a path to a checkpoint that one.

    Raise ValueError where none has the digest.
    """
    folders = [path] if is_checkpoint(path) else [folder for _, folder in rank_checkpoints(to_run_folder(path))]
    if digest is None:
        return path
    digests: dict[Path, str] = {}
    for folder in folders:
        try:
            digests[folder] = hash_checkpoint(folder)
        except DamagedError as error:
            log.warning("finetune.base=%s: %s: %s", base, folder.name, error)
    if matches := [folder for folder, other in digests.items() if other == digest]:
        return matches[0] if len(matches) == 1 else next(filter(is_intact, matches), matches[0])
    there = f"its newest have {next(iter(digests.values()))[:12]}" if digests else "it has no checkpoint that can be read"
    fix = "give the base as it was, by finetune.base=FOLDER and resume=RUN"
    raise ValueError(f"finetune.base={base} has no weights of digest {digest[:12]}, which were fine-tuned: {there}\n{fix}")
