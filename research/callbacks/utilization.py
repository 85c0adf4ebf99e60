"""A callback that logs how fast a run trains, and which part of the processor's matrix multiplications that is."""

import logging
import time
from typing import Literal

import torch
from torch import nn

from research import rules
from research.data.spec import Tokens, Vectors
from research.ranges import PositiveInt, check_settings
from research.training import distributed
from research.training.state import Callback, State

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PEAK_SECONDS = 0.15  # that the measurement of the peak takes
MIN_PRODUCTS = 3  # however slow the first one is


class Utilization(Callback):
    """Log every `every` steps perf/recent_UNITS_per_s and perf/mfu, the model FLOP utilization.

    MFU is the FLOPs of the model a second over the peak (PaLM, Chowdhery et al. 2022, appendix B): 6 N a token, of N weights
    that multiply, plus 12 * width * sequence in each attention layer; embedding tables are looked up and do not count. The
    peak is that of a large matrix product, measured at the start, in the run's precision and threads. Steps with an
    evaluation are left out of the time. A convolution uses a weight at many positions, so models of images have no MFU.
    """

    def __init__(self, every: PositiveInt = 50, precision: Literal["fp32", "bf16", "fp16"] = "fp32") -> None:
        check_settings("callbacks.utilization", Utilization.__init__.__annotations__, locals())
        self.every, self.precision = every, precision
        self.peak = self.flops_per_sample = 0.0
        self.seconds, self.steps, self.last_time = 0.0, 0, 0.0

    def on_start(self, state: State) -> None:
        if conflict := rules.check_callback_every("utilization", self.every, state.info.log_every, state.info.eval_every):
            log.warning("%s", conflict)
        self.flops_per_sample = count_flops(state.model, state.data.shape)
        device = next(state.model.parameters()).device
        self.peak = measure_peak(DTYPES[self.precision], device) * distributed.world_size() if self.flops_per_sample else 0.0
        self.seconds, self.steps, self.last_time = 0.0, 0, 0.0

    def on_gradients(self, state: State) -> None:
        now, done = time.perf_counter(), state.progress.step
        if self.last_time and done % state.info.eval_every:  # else an evaluation came between
            self.seconds, self.steps = self.seconds + now - self.last_time, self.steps + 1
        self.last_time = now
        if (done + 1) % self.every == 0 and self.steps:
            samples_per_s = self.steps * state.info.batch_size / max(self.seconds, 1e-9)
            per_sample = state.data.shape.seq_len if state.data.unit == "token" else 1
            state.progress.extra_metrics[f"perf/recent_{state.data.unit}s_per_s"] = samples_per_s * per_sample
            if self.peak:
                share = samples_per_s * self.flops_per_sample / self.peak
                state.progress.extra_metrics["perf/mfu"] = share
                state.end_notes["utilization"] = f"{share:.1%} of {self.peak / 1e9:,.0f} GFLOP/s, the {self.precision} peak"
            self.seconds, self.steps = 0.0, 0


def count_flops(model: nn.Module, shape: object) -> float:
    """Return the FLOPs that training takes a sample, forward and backward; 0 for models of images."""
    seq_len = shape.seq_len if isinstance(shape, Tokens) else 1
    if not isinstance(shape, Tokens | Vectors):
        return 0.0
    modules = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
    weights = {id(p): p.numel() for module in modules for p in module.parameters(recurse=False) if p.ndim > 1}
    widths = [m.get_parameter("weight").shape[0] for name, m in model.named_modules() if name.endswith("q_proj")]
    return float(seq_len * (6 * sum(weights.values()) + 12 * sum(widths) * seq_len))


def measure_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOPs a second of a large matrix product: the best of those that PEAK_SECONDS allow. No generator is used."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.linspace(-1, 1, n, device=device).outer(torch.linspace(-3, 3, n, device=device)).sin().to(dtype)

    def synchronize() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize()

    times, started = list[float](), time.perf_counter()
    with torch.no_grad():
        out = a @ a  # the first one also looks for its kernel
        while len(times) < MIN_PRODUCTS or time.perf_counter() - started < PEAK_SECONDS:
            synchronize()
            begin = time.perf_counter()
            torch.mm(a, a, out=out)
            synchronize()
            times.append(time.perf_counter() - begin)
    return 2 * n**3 / min(times)
