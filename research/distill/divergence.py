"""How far a student's distribution over classes is from a teacher's: one number (nats) a target."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from research.contracts import contract

Kind = Literal["forward", "reverse", "symmetric"]
REST_FLOOR = 1e-8  # of the probability of all other classes, whose logarithm is taken: float32 sums to 1 within 6e-8


class TopK(NamedTuple):
    """A teacher's k likeliest classes, and in the last bucket all others together, at temperature 1."""

    log_probs: Float[Tensor, "*targets buckets"]  # k + 1 buckets
    classes: Int[Tensor, "*targets k"]


@contract
def select_top_k(logits: Float[Tensor, "*targets classes"], k: int) -> TopK:
    """Return the k likeliest classes with their log-probabilities, and the rest as one more bucket."""
    log_probs, classes = F.log_softmax(widen(logits), -1).topk(k)
    return TopK(append_rest(log_probs), classes)


def append_rest(log_probs: Float[Tensor, "*targets k"]) -> Float[Tensor, "*targets buckets"]:
    """Return the log-probabilities of some classes with that of all others as the last one."""
    rest = torch.log((1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=REST_FLOOR))
    return torch.cat([log_probs, rest], -1)


@contract
def diverge(
    student: Float[Tensor, "*targets classes"], teacher: Float[Tensor, "*targets classes"], kind: Kind, temperature: float
) -> Float[Tensor, "*targets"]:
    """Return T^2 times the divergence of both distributions at temperature T, so that gradients keep their size.

    Hinton et al. 2015 (1503.02531), section 2.
    """
    own, other = (F.log_softmax(widen(logits) / temperature, -1) for logits in (student, teacher))
    return temperature**2 * compare(own, other, kind)


@contract
def diverge_top_k(
    student: Float[Tensor, "*targets classes"], teacher: TopK, kind: Kind, temperature: float
) -> Float[Tensor, "*targets"]:
    """Return the same over k + 1 buckets: the teacher's k likeliest classes, and all others together.

    The temperature is applied to the buckets of both sides. So what is kept of a teacher does not depend on it.
    """
    own = append_rest(F.log_softmax(widen(student), -1).gather(-1, teacher.classes.long()))
    return diverge(own, teacher.log_probs, kind, temperature)


@contract
def compare(student: Float[Tensor, "*n c"], teacher: Float[Tensor, "*n c"], kind: Kind) -> Float[Tensor, "*n"]:
    """Return KL(teacher || student), the reverse, or the mean of both, of log-probabilities."""
    gap = teacher - student
    if kind == "forward":
        return (teacher.exp() * gap).sum(-1)
    if kind == "reverse":
        return (-student.exp() * gap).sum(-1)
    return (0.5 * (teacher.exp() - student.exp()) * gap).sum(-1)


@contract
def widen(logits: Tensor) -> Tensor:
    """Return logits in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
