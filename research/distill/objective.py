"""The objective of distillation: the loss of the targets, and how far the student is from its teacher."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from research import rules
from research.composition.teacher import DISTILL, check_loss, check_settings_of_teacher, complete_teacher
from research.contracts import contract
from research.data.spec import Dataset, Images
from research.distill.divergence import Kind, TopK, diverge, diverge_top_k, select_top_k
from research.distill.hidden import compare_outputs, match_blocks, record_outputs
from research.distill.store import Store, check_store, describe_answers
from research.distill.teacher import check_data, load_teacher
from research.losses import IGNORE, Loss, check_losses, num_valid_targets
from research.nn.bitlinear import bitlinear_layers, cached_quantized_weights
from research.ranges import PositiveFloat, PositiveInt, Share, check_settings
from research.run_dir import expand_path
from research.training import distributed
from research.training.state import RunObjective, State
from research.training.task import balance_classes, check_logits, count_classes, locate


class Distill(RunObjective):
    """(1 - weight) * loss + weight * T^2 * divergence from the teacher, and `hidden` times that of the blocks' outputs.

    Hinton et al. 2015 (1503.02531), section 2. Where a target is IGNORE there is no term of the teacher either. The teacher is
    in evaluation mode, without gradients, and in no checkpoint. With `top_k` it is its k likeliest classes, and all others as
    one. With `store` what it says of a sample is kept in that folder, and read where it is there.
    Raise ValueError for settings that do not go together, and for a loss of numbers.
    """

    def __init__(
        self,
        loss: Loss,
        teacher: str,  # a run folder, a checkpoint, an MLflow run id, or a folder that save_pretrained wrote
        weight: Share = 0.5,  # of the teacher's term
        temperature: PositiveFloat = 1.0,
        kind: Kind = "forward",
        top_k: PositiveInt | None = None,
        hidden: PositiveFloat | None = None,
        layers: Sequence[int] | None = None,  # the teacher's block for each of the student's; None: spread evenly
        store: str | None = None,
        stored: bool = False,  # the store has every sample: the teacher is not loaded
        digest: str | None = None,  # of the teacher's weights
    ) -> None:
        settings = locals()
        check_settings("objective", Distill.__init__.__annotations__, settings)
        function = loss.func if isinstance(loss, partial) else loss
        rules.enforce(check_settings_of_teacher(settings), check_loss(locate(function).partition(" ")[0]))
        self.loss, self.teacher, self.weight, self.temperature, self.kind = loss, teacher, weight, temperature, kind
        self.top_k, self.hidden, self.layers, self.store, self.stored = top_k, hidden, layers, store, stored
        node = {"_target_": DISTILL, "teacher": teacher, "store": store, "stored": stored}
        self.digest = digest or complete_teacher(node).get("objective.digest", "")
        self.shape: object = None  # of the data
        self.num_classes: int | None = None
        self.net: nn.Module | None = None  # the teacher; None where its answers are stored, and where it has no weight
        self.answers: Store | None = None
        self.blocks: list[nn.Module] = []  # of the student
        self.teacher_blocks: list[nn.Module] = []  # the one for each of these
        self.resources = ExitStack()  # the quantized weights of a ternary teacher, which stay
        # Of both terms and of targets: of all processes since the last log point, and of this one in the step under way.
        self.sums, self.step_sums = torch.zeros(2, 3, dtype=torch.float64)

    def check(self, data: Dataset[Any]) -> None:
        if not self.stored:
            check_data(self.teacher, data)
        self.num_classes, self.shape = count_classes(data.shape), data.shape
        if self.top_k and self.num_classes and self.top_k > self.num_classes:
            message = f"objective.top_k={self.top_k}, and the data have {self.num_classes} classes"
            raise ValueError(f"{message}\ngive objective.top_k=null, or at most {self.num_classes}")
        if self.store and self.top_k:
            check_store(expand_path(self.store), describe_answers(self.digest, data, self.top_k), self.stored)

    def prepare(self, state: State) -> None:
        self.check(state.data)
        self.loss = balance_classes(self.loss, state.data)
        self.sums, self.step_sums = (sums.to(state.val.device) for sums in (self.sums, self.step_sums))
        if not self.weight and not self.hidden:
            return
        if self.store and self.top_k:
            facts = describe_answers(self.digest, state.data, self.top_k)
            self.answers = Store(expand_path(self.store), facts, self.stored)
        if not self.stored:
            self.net = load_teacher(self.teacher, self.digest, state.data.shape).to(state.val.device)
            self.resources.enter_context(cached_quantized_weights([*bitlinear_layers(self.net).values()]))
        if self.hidden and self.net:
            self.blocks, self.teacher_blocks = match_blocks(state.model, self.net, self.layers, state.val)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if not self.weight and not self.hidden:
            return self.loss(check_logits(model(x), y, model, self.loss, self.shape), y)
        with record_outputs(self.blocks) as outputs:
            logits = check_logits(model(x), y, model, self.loss, self.shape)
        check_losses(losses := self.loss(logits, y), y)  # before a mean spreads over the teacher's terms
        with torch.no_grad(), record_outputs(self.teacher_blocks) as teacher_outputs:
            answer = self.answer(x, y)
        terms = losses.new_zeros(3)
        masked = y == IGNORE
        if self.weight:
            student, settings = self.align(logits, y), (self.kind, self.temperature)
            if isinstance(answer, TopK):
                term = diverge_top_k(student, answer, *settings)
            else:
                term = diverge(student, answer, *settings)
            term = term.masked_fill(masked, 0)
            losses = (1 - self.weight) * losses + self.weight * term
            terms[0] = term.detach().sum()
        if self.hidden:
            apart = compare_outputs(outputs, teacher_outputs, y).masked_fill(masked, 0)
            losses = losses + self.hidden * apart
            terms[1] = apart.detach().sum()
        terms[2] = num_valid_targets(y)
        self.step_sums += terms
        return losses

    def answer(self, x: Tensor, y: Tensor) -> Tensor | TopK:
        """Return what the teacher says at each target: its logits, or its likeliest classes."""
        if self.answers and self.top_k:
            return self.answers.look_up(x, lambda index: select_top_k(self.ask(x[index], y[index]), self.top_k or 1))
        logits = self.ask(x, y)
        return select_top_k(logits, self.top_k) if self.top_k else logits

    def ask(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the teacher's logits at each target."""
        assert self.net is not None
        return self.align(check_logits(self.net(x), y, self.net, self.loss, self.shape), y)

    def align(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return logits as [*targets, classes]. There may be more of them than the data have tokens: these are left out."""
        if isinstance(self.shape, Images) and self.shape.per_pixel:
            logits = logits.movedim(1, -1)
        elif logits.ndim == y.ndim + 2:  # the last position is judged
            logits = logits[:, -1]
        return logits[..., : self.num_classes]

    def count_step(self) -> None:
        """Add the sums of a step, over all processes: a checkpoint holds those of the first, and each reads them."""
        sums = distributed.all_reduce_sum(self.step_sums)
        self.sums += torch.where(sums.isfinite().all(), sums, 0)  # an update that is left out, as train/loss does
        self.drop_step()

    def drop_step(self) -> None:
        self.step_sums.zero_()

    def collect_metrics(self) -> dict[str, float]:
        apart, hidden, count = self.sums.tolist()
        self.sums.zero_()
        means = {"train/teacher_kl": apart} if self.weight else {}
        means |= {"train/teacher_hidden": hidden} if self.hidden else {}
        return {name: value / count for name, value in means.items()} if count else {}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.cpu()}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["sums"])
