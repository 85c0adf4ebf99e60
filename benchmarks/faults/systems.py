"""The same training in five systems: each step adds one to every number, and each step is saved.

So every number of a good checkpoint, those of the optimizer's state too, equals the step at which it was saved. The order
of the samples does not matter.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import models
from research.callbacks.checkpoint import Checkpoint
from research.contracts import contract
from research.data.modular import modular
from research.optim.param_groups import run_closure
from research.optim.schedules import constant
from research.training.state import Callback, State
from research.training.trainer import Trainer

OnStep = Callable[[int], None]
ENDLESS = 1_000_000  # steps
DATA = modular(p=13)  # ours: 72 samples
SAMPLES = models.Samples(torch.arange(64.0)[:, None].repeat(1, 2), torch.zeros(64))


class Counting(nn.Module):
    """Numbers that the optimizer counts up; the output is always zero. It keeps the samples that it was trained on."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(numbers))
        self.samples: list[tuple[float, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.samples += map(tuple, x.tolist())
        return torch.zeros(*x.shape, 13) + 0 * self.weight[0]


class Counter(Optimizer):
    """Add one to every weight, and to two numbers of state for each."""

    @contract
    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        run_closure(closure)
        for p in self.param_groups[0]["params"]:
            memory = self.state[p]
            for name in ("first", "second"):
                memory[name] = memory.get(name, torch.zeros_like(p)) + 1
            p += 1


def sum_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return a loss that does not depend on the weights: the logits are always zero."""
    return logits.sum()


def constant_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the same of each target."""
    return F.cross_entropy(logits[:, -1], targets, reduction="none")


class LoadedError(BaseException):
    """End a training that has loaded a checkpoint: a loop that catches Exception does not catch this."""


@contract
class System(ABC):
    """A system that saves into `root` at each step. It trains and resumes in forks, so its numbers here stay zero."""

    name: ClassVar[str]
    package: ClassVar[str] = ""  # to install; empty: always there
    module: ClassVar[str] = ""  # to import before there are forks; it takes seconds
    loaded_step = 0  # by the system's own count

    keeps = 2  # checkpoints, where the system can be told so
    batch_size = 4
    num_samples = len(SAMPLES)  # of an epoch; 0: the system has no order of samples that it would resume

    def __init__(self, numbers: int) -> None:
        self.model = Counting(numbers)
        self.optimizer = Counter(self.model.parameters())
        self.parts = self.model, self.optimizer

    @abstractmethod
    def fit(self, root: Path, steps: int, resume: bool, on_step: OnStep) -> None:
        """Train to `steps` and save at each, from the newest checkpoint if `resume` is true.

        Call `on_step` at the start with the steps that are done, if the system counts them, and after each save.
        """

    def train(self, root: Path, report_step: OnStep, steps: int = ENDLESS) -> None:
        """Train from the beginning; call `report_step` with each step once that is saved."""
        self.fit(root, steps, False, lambda step: report_step(step) if step else None)

    def resume(self, root: Path) -> tuple[int, bool]:
        """Load the newest checkpoint. Return the step that the numbers equal, and whether all of them equal it.

        Raise the error of the system where it cannot load one.
        """

        def stop(step: int) -> None:
            self.loaded_step = step
            raise LoadedError

        with suppress(LoadedError):
            self.fit(root, ENDLESS, True, stop)
        memory = self.optimizer.state.get(self.model.weight, {})
        tensors = [self.model.weight.detach(), *(memory.get(name, torch.zeros(1)) for name in ("first", "second"))]
        step = float(tensors[0][0])
        if not step.is_integer():  # NaN and infinities are not
            return 0, False
        return int(step), all(bool((tensor == step).all()) for tensor in tensors)

    def list_files(self, root: Path) -> list[Path]:
        """Return the files of the newest checkpoint: those of the newest folder that has files."""
        folders: dict[Path, list[Path]] = {}
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.name.startswith(".") and path.suffix not in (".jsonl", ".log"):
                folders.setdefault(path.parent, []).append(path)
        return folders[max(folders, key=lambda folder: int("0" + re.sub(r"\D", "", folder.name)))]


@contract
class Grokbit(System):
    name = "grokbit"
    num_samples = len(DATA.train)

    def fit(self, root: Path, steps: int, resume: bool, on_step: OnStep) -> None:
        def report(callback: Callback, state: State) -> None:
            on_step(state.progress.step)

        trainer = Trainer(steps, self.batch_size, eval_every=ENDLESS, log_every=ENDLESS, clip_norm=None, device="cpu")
        # `saves` puts the reporter after the callback that saves.
        reporter = models.make_callback(Callback, saves=True, on_start=report, on_step=report)
        callbacks = [reporter] if resume else [Checkpoint(every=1, keep_last=self.keeps), reporter]
        settings: dict[str, Any] = {"folder": root, "resume": root if resume else None}
        trainer.fit(trainer.setup(*self.parts, constant, constant_loss, DATA, callbacks, **settings))

    def resume(self, root: Path) -> tuple[int, bool]:
        step, right = super().resume(root)
        return step, right and step == self.loaded_step


class TorchSave(System):
    name, num_samples = "torch.save to one file", 0

    @contract
    def fit(self, root: Path, steps: int, resume: bool, on_step: OnStep) -> None:
        if resume:
            checkpoint = torch.load(root / "last.pt", weights_only=True)
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        on_step(0)
        for step in range(1, steps + 1):
            self.optimizer.step()
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, root / "last.pt")
            on_step(step)


class Accelerate(System):
    name, num_samples = "accelerate save_state", 0

    @contract
    def fit(self, root: Path, steps: int, resume: bool, on_step: OnStep) -> None:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        configuration = ProjectConfiguration(str(root), automatic_checkpoint_naming=True, total_limit=self.keeps)
        accelerator = Accelerator(cpu=True, project_config=configuration)
        _, optimizer = accelerator.prepare(*self.parts)
        if resume:
            accelerator.load_state()
        on_step(0)
        for step in range(1, steps + 1):
            optimizer.step()
            accelerator.save_state()
            on_step(step)


class Transformers(System):
    name, package, module = "transformers Trainer", "transformers", "transformers.trainer"

    @contract
    def fit(self, root: Path, steps: int, resume: bool, on_step: OnStep) -> None:
        import transformers

        def report(callback: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            on_step(state.global_step)

        reporter = models.make_callback(transformers.TrainerCallback, on_train_begin=report, on_save=report)
        saving = {"output_dir": str(root), "save_strategy": "steps", "save_steps": 1, "save_total_limit": self.keeps}
        size = {
            "max_steps": steps,
            "per_device_train_batch_size": self.batch_size,
            "max_grad_norm": 0.0,
            "logging_steps": ENDLESS,
        }
        models.fit_transformers(self.parts, sum_logits, SAMPLES, reporter, resume, **saving, **size)


@contract
class Lightning(System):
    name, package, module = "Lightning", "lightning", "lightning.pytorch"

    def list_files(self, root: Path) -> list[Path]:
        return [root / "last.ckpt"]

    def fit(self, root: Path, steps: int, resume: bool, on_step: OnStep) -> None:
        from lightning.pytorch.callbacks import Callback, ModelCheckpoint

        def report(callback: Any, trainer: Any, *rest: Any) -> None:
            on_step(trainer.global_step)

        reporter = models.make_callback(Callback, on_train_batch_start=report)
        callbacks = [reporter, ModelCheckpoint(root, every_n_train_steps=1, save_last=True)]
        loader = models.make_loader(SAMPLES, self.batch_size)
        models.fit_lightning(self.parts, sum_logits, loader, callbacks, resume, max_steps=steps)


PEERS: list[type[System]] = [TorchSave, Accelerate, Transformers, Lightning]
