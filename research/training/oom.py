"""Memory: how much a process holds, and smaller micro-batches of the same work where it runs out."""

import gc
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from research.training import distributed
from research.training.state import RunObjective, State

Result = TypeVar("Result")
log = logging.getLogger(__name__)


def retry_on_oom(work: Callable[[], Result], state: State) -> Result:
    """Return what `work` returns; where memory runs out, try again with micro-batches of half as many samples."""
    for _ in range(1 + state.info.batch_size.bit_length()):  # as often as a batch can be halved
        try:
            return work()
        except RuntimeError as error:  # torch has a class for GPUs alone
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            message = str(error)
        halve_micro_batch(state, message)  # here, where the tensors of what failed are free
    raise AssertionError("a micro-batch of less than one sample")  # halve_micro_batch has refused it before


def halve_micro_batch(state: State, message: str) -> None:
    """Halve the micro-batch and double their number, for the work under way and all that follows.

    Raise ValueError where a micro-batch is one sample, and where other processes wait for this one's gradients.
    """
    progress = state.progress
    parts = state.batches.grad_accum * 2**progress.oom_halvings
    micro_batch = state.info.batch_size // (parts * distributed.world_size())
    step = progress.step + (not progress.eval_pending)
    if distributed.world_size() > 1 or micro_batch <= 1:
        fix = f"give trainer.grad_accum={2 * parts}" if micro_batch > 1 else "a micro-batch is one sample"
        more = "trainer.checkpoint_activations=true needs less, as does trainer.precision=bf16"
        raise ValueError(f"out of memory at step {step}: {message.splitlines()[0]}\n{fix}; {more}")
    progress.oom_halvings += 1
    log.warning("out of memory at step %d: micro-batches of %d samples from here on", step, -(-micro_batch // 2))
    state.optimizer.zero_grad()
    if isinstance(state.objective, RunObjective):
        state.objective.drop_step()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def get_peak_rss_mb() -> float:
    """Return the most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def get_rss_mb() -> float:
    """Return the memory that this process holds now, in MB."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text(encoding="utf-8").split()[1]) * resource.getpagesize() / 1e6
    process = subprocess.run(("ps", "-o", "rss=", "-p", str(os.getpid())), capture_output=True, text=True, check=True)
    return int(process.stdout) / 1e3
