"""A callback that saves checkpoints and deletes those that are no longer needed."""

import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from research.contracts import contract
from research.options.trigger import higher_is_better
from research.ranges import PositiveInt, check_settings
from research.run_dir import list_checkpoints, make_folder, sync
from research.training import checkpoint, distributed, sharding, snapshot
from research.training.files import check_kinds, remove
from research.training.state import Callback, State

log = logging.getLogger(__name__)


class Checkpoint(Callback):
    """Save at each best evaluation, every `every` steps and at the end, also when a signal ends the run.

    Retain the last `keep_last`, the best `keep_best` by the monitored metric, and the newest from before a loss or gradient
    was not finite; always two, once there are two. Delete an old checkpoint only after the new one is committed. With
    `background`, a thread writes a copy while the training continues.
    """

    saves = True

    def __init__(
        self, every: PositiveInt | None = None, keep_last: PositiveInt = 1, keep_best: PositiveInt = 1, background: bool = False
    ) -> None:
        check_settings("callbacks.checkpoint", Checkpoint.__init__.__annotations__, locals())
        self.every, self.keep_last, self.keep_best = every, keep_last, keep_best
        self.pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self.pending_write: Future[None] | None = None
        self.values: dict[int, float] = {}  # step of a checkpoint -> the monitored metric there
        self.task = ""  # the evaluation task of `values`: those of another task cannot be compared
        self.last_saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "task": self.task}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.task = state["values"], state["task"]

    def on_start(self, state: State) -> None:
        if self.task != state.info.task or not state.progress.best:  # those of another run
            self.values, self.task = {}, state.info.task
        self.last_saved_step = state.first_step or -1
        if self.pool and state.sharded:
            log.warning("callbacks.checkpoint.background=true is ignored: under trainer=fsdp all processes write, in the loop")
        if state.info.folder and distributed.rank() == 0:
            make_folder(state.info.folder)  # a program has; from here on one that is gone was moved
            self._clean(state.info.folder / "checkpoints")

    @staticmethod
    def _clean(root: Path) -> None:
        """Remove what a kill has left. Raise ValueError where no checkpoint could be saved."""
        check_kinds(root.parent, [root.name])
        checkpoint.clean(root)
        for path in root.glob("step-*"):
            if not path.is_dir():
                log.warning("%s is no folder, or a link that leads nowhere: it is not counted as a checkpoint", path)

    def on_step(self, state: State) -> None:
        if state.improved or (self.every and state.progress.step % self.every == 0):
            self._save(state)

    def on_end(self, state: State) -> None:
        try:
            if not state.error and state.progress.step != self.last_saved_step:
                self._save(state)
        finally:
            self.flush()

    def _save(self, state: State) -> None:
        if state.info.folder is None or bool(state.skipped_on_device) or not has_finite_weights(state):
            return  # the loop reports numbers that are not finite, at the next step or log point
        self.flush()
        state.require_folder()
        self.last_saved_step = state.progress.step
        if math.isfinite(value := state.logged.get(state.info.monitor, math.nan)):
            self.values[state.progress.step] = value
        captured, root = snapshot.capture(state), state.info.folder / "checkpoints"
        keep = self._list_steps_to_keep(root, state)
        if self.pool and not state.sharded:  # the thread writes a copy: the next steps change the tensors in place
            tensors, rest = checkpoint.copy_to_host(captured.tensors), checkpoint.copy_to_host(captured.state)
            self.pending_write = self.pool.submit(self._commit, root, replace(captured, tensors=tensors, state=rest), keep)
        else:
            self._commit(root, captured, keep)

    def _list_steps_to_keep(self, root: Path, state: State) -> set[int]:
        """Return the steps whose checkpoints are retained, this one among them."""
        steps = sorted({*list_checkpoints(root.parent), state.progress.step}, reverse=True)
        # A run that was rolled back has later checkpoints. Each is replaced when the run reaches its step again.
        later, past = ([step for step in steps if (step > state.progress.step) == is_later] for is_later in (True, False))
        sign = -1 if higher_is_better(state.info.monitor, state.info.directions) else 1
        best = sorted((step for step in self.values if step in steps), key=lambda step: (sign * self.values[step], step))
        retained = {*past[: self.keep_last], *best[: self.keep_best], state.progress.last_finite_checkpoint}
        spare = past[:2] if len(retained.intersection(past)) < 2 else []  # one damaged file must not end a run
        return {*later, *retained, *spare}

    @staticmethod
    def _commit(root: Path, contents: checkpoint.Snapshot, keep: set[int]) -> None:
        if (metrics := root.parent / "metrics.jsonl").exists():
            sync(metrics)  # a run that resumes from this checkpoint needs the metrics before it
        checkpoint.commit(root, contents)
        if distributed.rank() == 0:
            for step, path in list_checkpoints(root.parent).items():
                if step not in keep:
                    # Renamed first: a kill in the middle leaves a draft, not half a checkpoint.
                    remove(path.rename(path.with_name(f".draft-{path.name}")))

    def flush(self) -> None:
        """Wait until the last checkpoint is committed; raise here what its writing raised."""
        pending, self.pending_write = self.pending_write, None
        if pending:
            pending.result()


def has_finite_weights(state: State) -> bool:
    """Return whether every weight is finite; of sharded ones, in all processes."""
    shards = [shard for p in state.model.parameters() if (shard := sharding.local_shard(p.detach())).numel()]
    extremes = [end for shard in shards for end in shard.aminmax()]  # a fraction of isfinite's time, and NaN comes through
    broken = bool(extremes) and not all(map(math.isfinite, torch.stack(extremes).tolist()))
    return not (distributed.all_reduce_max(broken) if state.sharded else broken)
