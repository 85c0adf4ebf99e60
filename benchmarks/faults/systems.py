"""The same training in five systems: each step adds one to every number, and each step is saved.

So every number of a good checkpoint, those of the optimizer's state too, equals the step at which it was saved. The order
of the samples does not matter.
"""

import importlib.util
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

from benchmarks import peers
from benchmarks.peers import make_callback
from research.callbacks.checkpoint import Checkpoint
from research.data.modular import modular
from research.optim.param_groups import run_closure
from research.optim.schedules import constant
from research.training.state import Callback, State
from research.training.trainer import Trainer

ReportStep = Callable[[int], None]  # a system calls it with each step once that is saved
ENDLESS = 1_000_000  # steps
SAMPLES = peers.Samples(torch.zeros(64, 2), torch.zeros(64))


class Counting(nn.Module):
    """Numbers that the optimizer counts up; the output is always zero."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(numbers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 5) + 0 * self.weight[0]


class Counter(Optimizer):
    """Add one to every weight, and to two numbers of state for each."""

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


def constant_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return a loss that does not depend on the weights: the logits are always zero."""
    return F.cross_entropy(logits[:, -1], targets, reduction="none")


class LoadedError(BaseException):
    """End a training once it has loaded a checkpoint: a loop that catches Exception does not catch this."""


def stop_training(*args: Any, **more: Any) -> None:
    """End the training: a method of the callbacks of any loop."""
    raise LoadedError


class System(ABC):
    """A system that saves into `root` at each step. Each method that trains or loads runs in a fork of its own."""

    name: ClassVar[str]
    package: ClassVar[str] = ""  # to install, and to import; empty: always there

    def __init__(self, numbers: int) -> None:
        self.model = Counting(numbers)
        self.optimizer = Counter(self.model.parameters())
        self.parts = self.model, self.optimizer

    @abstractmethod
    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        """Train from the beginning, saving at each step."""

    @abstractmethod
    def load(self, root: Path) -> None:
        """Load the newest checkpoint. Raise the error of the system where it cannot; LoadedError may end its loop."""

    def resume(self, root: Path) -> tuple[int, bool]:
        """Load the newest checkpoint. Return the step that the numbers equal, and whether all of them equal it."""
        with suppress(LoadedError):
            self.load(root)
        weight = self.model.weight
        memory = self.optimizer.state.get(weight, {})
        tensors = [weight.detach(), *(memory.get(name, torch.zeros(1)) for name in ("first", "second"))]
        step = float(weight[0])
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


class Grokbit(System):
    name = "grokbit"

    def fit(self, root: Path, callbacks: list[Callback], steps: int, resume: Path | None = None) -> None:
        trainer = Trainer(steps, 4, eval_every=ENDLESS, log_every=ENDLESS, clip_norm=None, device="cpu")
        trainer.fit(trainer.setup(*self.parts, constant, constant_loss, modular(p=5), callbacks, folder=root, resume=resume))

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        def on_step(callback: Callback, state: State) -> None:
            report_step(state.progress.step)

        # `saves` puts it after the callback that saves.
        self.fit(root, [Checkpoint(every=1, keep_last=2), make_callback(Callback, saves=True, on_step=on_step)], steps)

    def load(self, root: Path) -> None:
        def on_start(callback: Callback, state: State) -> None:
            self.loaded_step = state.progress.step
            raise LoadedError

        self.fit(root, [make_callback(Callback, on_start=on_start)], ENDLESS, root)

    def resume(self, root: Path) -> tuple[int, bool]:
        step, right = super().resume(root)
        return step, right and step == self.loaded_step


class TorchSave(System):
    name = "torch.save to one file"

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        for step in range(1, steps + 1):
            self.optimizer.step()
            torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, root / "last.pt")
            report_step(step)

    def load(self, root: Path) -> None:
        checkpoint = torch.load(root / "last.pt", weights_only=True)
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])


class Accelerate(System):
    name = "accelerate save_state"

    def prepare(self, root: Path) -> tuple[Any, Any]:
        """Return an accelerator and the optimizer that it wraps."""
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        configuration = ProjectConfiguration(str(root), automatic_checkpoint_naming=True, total_limit=2)
        accelerator = Accelerator(cpu=True, project_config=configuration)
        return accelerator, accelerator.prepare(*self.parts)[1]

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        accelerator, optimizer = self.prepare(root)
        for step in range(1, steps + 1):
            optimizer.step()
            accelerator.save_state()
            report_step(step)

    def load(self, root: Path) -> None:
        self.prepare(root)[0].load_state()


class Transformers(System):
    name, package = "transformers Trainer", "transformers"

    def fit(self, root: Path, steps: int, resume: bool, **moments: Callable[..., None]) -> None:
        saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
        size = {"max_steps": steps, "per_device_train_batch_size": 4, "max_grad_norm": 0.0, "logging_steps": ENDLESS}
        settings: dict[str, Any] = {**saving, **size}
        peers.fit_transformers(self.parts, lambda logits, targets: logits.sum(), SAMPLES, moments, root, resume, **settings)

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        self.fit(root, steps, False, on_save=lambda callback, args, state, *rest, **more: report_step(state.global_step))

    def load(self, root: Path) -> None:
        self.fit(root, ENDLESS, True, on_train_begin=stop_training)


class Lightning(System):
    name, package = "Lightning", "lightning"

    def list_files(self, root: Path) -> list[Path]:
        return [root / "last.ckpt"]

    def fit(self, root: Path, steps: int, resume: bool, on_train_batch_start: Callable[..., None]) -> None:
        from lightning.pytorch.callbacks import ModelCheckpoint

        saving = [ModelCheckpoint(root, every_n_train_steps=1, save_last=True)]
        moments, loader = {"on_train_batch_start": on_train_batch_start}, peers.make_loader(SAMPLES, 4)
        peers.fit_lightning(self.parts, lambda logits, targets: logits.sum(), loader, moments, saving, resume, max_steps=steps)

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        def report_last_step(callback: Any, trainer: Any, *rest: Any) -> None:
            if trainer.global_step:
                report_step(trainer.global_step)

        self.fit(root, steps, False, report_last_step)

    def load(self, root: Path) -> None:
        self.fit(root, ENDLESS, True, stop_training)


PEERS: list[type[System]] = [TorchSave, Accelerate, Transformers, Lightning]


def prepare_process() -> None:
    """Prepare the process before it forks: one compute thread, and the imports that the children need."""
    torch.set_num_threads(1)
    for package in ("lightning", "transformers"):
        with suppress(ImportError):
            importlib.import_module(package)
