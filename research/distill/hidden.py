"""How far the outputs of a student's blocks are from those of its teacher's, in direction: their lengths are free."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from research.contracts import contract
from research.data.spec import Samples
from research.nn.blocks import find_blocks

Outputs = dict[int, Tensor]  # of blocks, by their number


@contextmanager
@contract
def record_outputs(blocks: Sequence[nn.Module]) -> Iterator[Outputs]:
    """Keep what blocks return within the `with`. Those of transformers may return more than one thing: the first counts."""
    outputs: Outputs = {}

    def record(number: int, output: Any) -> None:
        outputs[number] = output[0] if isinstance(output, tuple) else output

    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output, number=number: record(number, output))
        for number, block in enumerate(blocks)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contract
def compare_outputs(student: Outputs, teacher: Outputs, targets: Tensor) -> Float[Tensor, "*targets"]:
    """Return 1 - cosine of the blocks' outputs, the mean over blocks: at each target, or the mean of its sample.

    It is half the squared distance of the outputs scaled to length 1.
    """
    gaps = [1 - F.cosine_similarity(own.float(), teacher[number].float(), dim=-1) for number, own in student.items()]
    if all(gap.shape == targets.shape for gap in gaps):
        return torch.stack(gaps).mean(0)
    mean = torch.stack([gap.flatten(1).mean(1) if gap.ndim > 1 else gap for gap in gaps]).mean(0)
    return mean.view(-1, *[1] * (targets.ndim - 1)).expand(targets.shape)


def match_blocks(
    student: nn.Module, teacher: nn.Module, layers: Sequence[int] | None, samples: Samples
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the blocks of a student, and the teacher's block for each: `layers`, or every so manyth up to the last.

    Raise ValueError for models without blocks, numbers that are of no block, and outputs of other widths.
    """
    own, theirs = (list(find_blocks(model).values()) for model in (student, teacher))
    for model, blocks in ((student, own), (teacher, theirs)):
        if not blocks:
            message = f"objective.hidden: {type(model).__name__} has no ModuleList or Sequential of blocks"
            raise ValueError(f"{message}\ngive objective.hidden=null")
    chosen = [*layers] if layers is not None else [(n + 1) * len(theirs) // len(own) - 1 for n in range(len(own))]
    chosen = [max(0, number) for number in chosen] if layers is None else chosen
    if len(chosen) != len(own) or not all(type(number) is int and 0 <= number < len(theirs) for number in chosen):
        message = f"objective.layers={chosen}: the student has {len(own)} blocks, the teacher {len(theirs)}"
        example = str([len(theirs) - 1] * len(own)).replace(" ", "")
        raise ValueError(f"{message}\ngive one number below {len(theirs)} a block of the student, as {example}")
    blocks = [theirs[number] for number in chosen]
    sizes = [probe(model, parts, samples) for model, parts in ((student, own), (teacher, blocks))]
    if differing := [pair for pair in zip(*sizes, strict=True) if pair[0] != pair[1]]:
        (mine, others), fix = differing[0], "give objective.hidden=null, or a student and a teacher of one width and one kind"
        raise ValueError(f"objective.hidden: a block of the student gives {mine}, that of the teacher {others}\n{fix}")
    return own, blocks


@torch.no_grad()
@contract
def probe(model: nn.Module, blocks: Sequence[nn.Module], samples: Samples) -> list[tuple[int, ...]]:
    """Return the shapes of what blocks return for one sample."""
    was_training = model.training
    model.eval()
    try:
        with record_outputs(blocks) as outputs:
            model(samples[torch.arange(1)][0])
    finally:
        model.train(was_training)
    return [tuple(outputs[number].shape[1:]) for number in sorted(outputs)]
