"""The same training in five systems: each step adds one to every number, and each step is saved.

So every number of a good checkpoint, those of the optimizer's state too, equals the step at which it was saved. The order
of the samples does not matter.
"""

import contextlib
import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from research.callbacks.checkpoint import Checkpoint
from research.data.modular import modular
from research.optim.param_groups import run_closure
from research.optim.schedules import constant
from research.training.state import Callback, State
from research.training.trainer import Trainer

ReportStep = Callable[[int], None]  # a system calls it with each step once that is saved
ENDLESS = 1_000_000  # steps


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


def read_step(model: nn.Module, optimizer: Optimizer) -> tuple[int, bool]:
    """Return the step that the numbers equal, and whether all of them equal it."""
    weight = next(model.parameters())
    step = float(weight[0])
    memory = optimizer.state.get(weight, {})
    tensors = [weight.detach(), *(memory.get(name, torch.zeros(1)) for name in ("first", "second"))]
    if not step.is_integer():  # NaN and infinities are not
        return 0, False
    return int(step), all(bool((tensor == step).all()) for tensor in tensors)


class Resumed(BaseException):
    """End a training once it has loaded a checkpoint; `args` are the result of `read_step`."""


class System(ABC):
    """A system that saves into `root` at each step."""

    name: ClassVar[str]
    package: ClassVar[str] = ""  # to install, and to import; empty: always there

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers

    @abstractmethod
    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        """Train from the beginning, saving at each step."""

    @abstractmethod
    def load(self, root: Path) -> None:
        """Resume, and raise Resumed once the newest checkpoint is loaded."""

    def resume(self, root: Path) -> tuple[int, bool]:
        """Resume and return the result of `read_step`. Raise the error of the system where it cannot resume."""
        try:
            self.load(root)
        except Resumed as resumed:
            return resumed.args[0], resumed.args[1]
        raise AssertionError("nothing was resumed")

    def build_parts(self) -> tuple[Counting, Counter]:
        model = Counting(self.numbers)
        return model, Counter(model.parameters())

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
        model, optimizer = self.build_parts()
        trainer = Trainer(steps, 4, eval_every=ENDLESS, log_every=ENDLESS, clip_norm=None, device="cpu")
        state = trainer.setup(model, optimizer, constant, constant_loss, modular(p=5), callbacks, folder=root, resume=resume)
        trainer.fit(state)

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        class Reporter(Callback):
            saves = True  # so that it runs after the callback that saves

            def on_step(self, state: State) -> None:
                report_step(state.progress.step)

        self.fit(root, [Checkpoint(every=1, keep_last=2), Reporter()], steps)

    def load(self, root: Path) -> None:
        class Inspector(Callback):
            def on_start(self, state: State) -> None:
                step, right = read_step(state.model, state.optimizer)
                raise Resumed(step, right and step == state.progress.step)

        self.fit(root, [Inspector()], ENDLESS, root)


class TorchSave(System):
    name = "torch.save to one file"

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        model, optimizer = self.build_parts()
        for step in range(1, steps + 1):
            optimizer.step()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, root / "last.pt")
            report_step(step)

    def load(self, root: Path) -> None:
        model, optimizer = self.build_parts()
        checkpoint = torch.load(root / "last.pt", weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        raise Resumed(*read_step(model, optimizer))


class Accelerate(System):
    name = "accelerate save_state"

    def prepare(self, root: Path) -> tuple[Any, Any, Any]:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        configuration = ProjectConfiguration(str(root), automatic_checkpoint_naming=True, total_limit=2)
        accelerator = Accelerator(cpu=True, project_config=configuration)
        return accelerator, *accelerator.prepare(*self.build_parts())

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        accelerator, _, optimizer = self.prepare(root)
        for step in range(1, steps + 1):
            optimizer.step()
            accelerator.save_state()
            report_step(step)

    def load(self, root: Path) -> None:
        accelerator, model, optimizer = self.prepare(root)
        accelerator.load_state()
        raise Resumed(*read_step(model, optimizer.optimizer))


class Transformers(System):
    name, package = "transformers Trainer", "transformers"

    def fit(self, root: Path, steps: int, resume: bool, **moments: Callable[..., None]) -> None:
        """Train, and call `moments`, methods of a callback by name."""
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()

        class Loop(transformers.Trainer):
            def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **more: Any) -> Tensor:
                return model(inputs["x"]).sum()  # type: ignore[no-any-return]

        model, optimizer = self.build_parts()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        args = transformers.TrainingArguments(
            output_dir=str(root), max_steps=steps, per_device_train_batch_size=4, save_strategy="steps", save_steps=1,
            save_total_limit=2, max_grad_norm=0.0, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=ENDLESS,
            dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        callback = type("Moments", (transformers.TrainerCallback,), moments)()
        samples: Any = [{"x": torch.zeros(2)}] * 64
        loop = Loop(model, args, train_dataset=samples, optimizers=(optimizer, schedule), callbacks=[callback])
        loop.remove_callback(transformers.trainer_callback.PrinterCallback)
        loop.train(resume_from_checkpoint=resume)

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        def on_save(callback: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            report_step(state.global_step)

        self.fit(root, steps, False, on_save=on_save)

    def load(self, root: Path) -> None:
        def on_train_begin(callback: Any, args: Any, state: Any, control: Any, **parts: Any) -> None:
            optimizer = parts["optimizer"]
            raise Resumed(*read_step(parts["model"], getattr(optimizer, "optimizer", optimizer)))

        self.fit(root, ENDLESS, True, on_train_begin=on_train_begin)


class Lightning(System):
    name, package = "Lightning", "lightning"

    def list_files(self, root: Path) -> list[Path]:
        return [root / "last.ckpt"]

    def fit(self, root: Path, inspect: Callable[[int, nn.Module, Optimizer], None], steps: int, resume: bool) -> None:
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint

        numbers = self.numbers

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = Counting(numbers)

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                return self.model(batch[0]).sum()  # type: ignore[no-any-return]

            def on_train_batch_start(self, batch: Any, index: int) -> None:
                inspect(self.global_step, self.model, self.trainer.optimizers[0])

            def configure_optimizers(self) -> Optimizer:
                return Counter(self.model.parameters())

        saving = ModelCheckpoint(root, every_n_train_steps=1, save_last=True)
        silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", callbacks=[saving], **silent)
        trainer.fit(Module(), DataLoader(TensorDataset(torch.zeros(64, 2)), 4), ckpt_path="last" if resume else None)

    def train(self, root: Path, report_step: ReportStep, steps: int = ENDLESS) -> None:
        self.fit(root, lambda step, model, optimizer: report_step(step) if step else None, steps, False)

    def load(self, root: Path) -> None:
        def inspect(step: int, model: nn.Module, optimizer: Optimizer) -> None:
            raise Resumed(*read_step(model, optimizer))

        self.fit(root, inspect, ENDLESS, True)


PEERS: list[type[System]] = [TorchSave, Accelerate, Transformers, Lightning]


def constant_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return a loss that does not depend on the weights: the logits are always zero."""
    return F.cross_entropy(logits[:, -1], targets, reduction="none")


def prepare_process() -> None:
    """Prepare the process before it forks: one compute thread, and the imports that the children need."""
    torch.set_num_threads(1)
    for package in ("lightning", "transformers"):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
