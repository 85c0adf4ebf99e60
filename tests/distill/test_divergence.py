"""The teacher's term against a plain computation in float64, for every kind, temperature and number of classes kept."""

import math

import pytest
import torch
from torch import Tensor

from research.distill.divergence import Kind, diverge, diverge_top_k, select_top_k

KINDS: tuple[Kind, ...] = ("forward", "reverse", "symmetric")


def make_logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compute_plainly(student: list[float], teacher: list[float], kind: str, temperature: float) -> float:
    """From logits, or log-probabilities, of one target: sums of Python's own numbers."""

    def soften(logits: list[float]) -> list[float]:
        powers = [math.exp(logit / temperature) for logit in logits]
        return [power / math.fsum(powers) for power in powers]

    def diverge_plainly(p: list[float], q: list[float]) -> float:
        return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    s, t = soften(student), soften(teacher)
    forward, reverse = diverge_plainly(t, s), diverge_plainly(s, t)
    return temperature**2 * {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}[kind]


def collect(logits: list[float], kept: list[int]) -> list[float]:
    """The log-probabilities of some classes, and of the rest together."""
    total = math.fsum(map(math.exp, logits))
    probabilities = [math.exp(logits[index]) / total for index in kept]
    return [math.log(p) for p in [*probabilities, 1 - math.fsum(probabilities)]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_the_definition(kind: Kind, temperature: float) -> None:
    student, teacher = make_logits(0, 4, 7), make_logits(1, 4, 7)
    pairs = zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    expected = [compute_plainly(*pair, kind, temperature) for pair in pairs]
    assert diverge(student, teacher, kind, temperature).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_rest_is_one_bucket(kind: Kind, temperature: float, k: int) -> None:
    student, teacher = make_logits(0, 4, 7), make_logits(1, 4, 7)
    kept = select_top_k(teacher, k)
    expected = [
        compute_plainly(collect(own, classes), collect(other, classes), kind, temperature)
        for own, other, classes in zip(student.double().tolist(), teacher.double().tolist(), kept.classes.tolist(), strict=True)
    ]
    assert diverge_top_k(student, kept, kind, temperature).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_kept_are_all_classes(kind: Kind) -> None:
    student, teacher = make_logits(0, 3, 5).requires_grad_(), make_logits(1, 3, 5)
    whole, kept = diverge(student, teacher, kind, 1.0), diverge_top_k(student, select_top_k(teacher, 5), kind, 1.0)
    torch.testing.assert_close(whole, kept, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(kept.sum(), student)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_agrees_has_no_divergence_and_half_precision_is_widened(kind: Kind) -> None:
    logits = make_logits(0, 2, 3, 50).bfloat16()
    assert diverge(logits, logits, kind, 2.0).dtype == torch.float32
    torch.testing.assert_close(diverge(logits, logits, kind, 2.0), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(diverge_top_k(logits, select_top_k(logits, 4), kind, 2.0), torch.zeros(2, 3), atol=1e-5, rtol=0)


def test_the_gradient_keeps_its_size_at_high_temperatures() -> None:
    """Hinton et al. 2015, section 2.1: for T far above the logits, T^2 KL is half the mean squared gap of centred logits."""
    student, teacher = make_logits(0, 1, 6).double(), make_logits(1, 1, 6).double()
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student, teacher)]
    limit = (centred[0] - centred[1]).square().sum(-1) / (2 * 6)
    torch.testing.assert_close(diverge(student, teacher, "forward", 1000.0), limit, rtol=1e-2, atol=0)
