"""What a run has reached, as its summary tells it."""

from typing import Any

from research.cli import redact
from research.contracts import contract
from research.data.spec import Dataset
from research.nn.bitlinear import bitlinear_layers
from research.nn.lowrank import count_learning
from research.run_dir import Summary
from research.training.checkpoint import hash_weights
from research.training.oom import get_peak_rss_mb
from research.training.state import TIME_LIMIT, State


@contract
def is_finished(summary: Summary, in_sweep: bool) -> bool:
    """Return whether a run has done what it was to do. One that its time limit ended goes on, but for a sweep's trial."""
    return summary.status == "FINISHED" and (in_sweep or not summary.stop.startswith(TIME_LIMIT))


@contract
def describe_outcome(state: State | None) -> dict[str, Any]:
    """Return the fields of Summary that tell what a run has reached; none where it could not be built."""
    if state is None:
        return {}
    progress, data = state.progress, state.data
    throughput = state.compute_throughput()
    return {
        "monitor": state.info.monitor,
        "value": progress.best.get(state.info.monitor),
        "metrics": progress.metrics,
        "best": progress.best,
        "baseline": data.baseline,
        "steps": progress.step,
        "stop": state.stop,
        "rollbacks": progress.rollbacks,
        "train_s": progress.seconds,
        "samples_per_s": throughput / (data.shape.seq_len if data.unit == "token" else 1),
        "tokens_per_s": throughput if data.unit == "token" else None,
        "peak_rss_mb": get_peak_rss_mb(),
        "data": redact(describe_data(data)),
        "notes": redact(list(data.notes)),
        "shape": data.shape._asdict(),
        "classes": list(data.classes),
        "params": sum(p.numel() for p in state.model.parameters()),
        "learning_params": count_learning(state.model),
        "quantized_params": sum(layer.weight.numel() for layer in bitlinear_layers(state.model).values()),
        "weights_sha256": None if state.sharded and state.error else hash_weights(state.model),
    }


@contract
def describe_data(data: Dataset[Any]) -> str:
    """Return where a data set comes from and how many samples each of its splits has."""
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    sizes = [f"{len(samples):,} {name}" for name, samples in splits.items() if samples is not None]
    return f"{data.source}: {', '.join(sizes[:-1])} and {sizes[-1]} samples, digest {data.digest[:8]}"
