"""What a run says of itself in MLflow: its name there, tags, params, data set, and the numbers that it ends with."""

import getpass
import json
import re
import socket
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from research.cli import redact
from research.contracts import contract
from research.rules import HYDRA_KEYS
from research.run_dir import OUTER_KEYS, RunConfig
from research.signals import find_program
from research.tracking.environment import run_git

SOURCE_TAG = "mlflow.source.name"  # each run of this program has this tag; the run of a sweep, which is no process, has not
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"  # the description, in Markdown, on top of a run's page
MAX_TAG_LENGTH = 8000  # characters, MLflow's limit
MAX_PARAM_LENGTH = 6000
DIGEST_LENGTH = 8  # as MLflow's own digests of data sets, and as the console shows ours
OUTER_CHOICES = ("local", "tracker")  # groups that are no part of the result
MAX_NAME_LENGTH = 100  # characters of a run's name
SPEED = "perf/"  # metrics of speed and of the machine: no two processes have the same
SYSTEM = "system/"  # MLflow has a page of its own for metrics with this prefix


@contract
def join_name(words: Sequence[str]) -> str:
    """Return a run's name of at most MAX_NAME_LENGTH characters: what was chosen, and KEY=VALUE of what was set.

    Where these have no room each is shortened, as far as it must be: the last one tells a run from its neighbours as well as
    the first. A digest stands for what was left out.
    """
    if len(whole := " ".join(words)) <= MAX_NAME_LENGTH:
        return whole
    digest, room = f"#{crc32(whole.encode(errors='surrogatepass')):08x}", MAX_NAME_LENGTH - 10
    for length in range(40, 7, -1):
        if len(name := " ".join(shorten_word(word, length) for word in words)) <= room:
            break
    return f"{textwrap.shorten(name, room, placeholder=' ...')} {digest}"


def shorten_word(word: str, length: int) -> str:
    """Return KEY=VALUE in at most so many characters: first the parts of the key, then its end, then the value's middle."""
    key, equal, value = word.rpartition("=")
    key = key.rpartition(".")[2][: max(4, length - 1 - len(value))]
    room = length - len(key + equal)
    return f"{key}{equal}{value if len(value) <= room else f'{value[: room // 2]}…{value[1 + room // 2 - room :]}'}"


@contract
def rename_metric(metric: str) -> str:
    """Return a metric's name in MLflow, whose charts stand in the order of their names: losses and accuracies come first.

    Speed moves to the page of the system, and what has no slash stands below the rest.
    """
    return "grad_norm" if metric == "grad/norm" else re.sub(f"^{SPEED}", SYSTEM, metric)


@contract
def make_tags(run: RunConfig, trial: int | None, parent: str | None) -> dict[str, str]:
    """Return the tags that a run begins with: MLflow's own, what was chosen, and what was swept."""
    command = redact(" ".join(["python", find_program(), *run.overrides]))
    tags = {"folder": str(run.folder), "host": socket.gethostname(), NOTE_TAG: f"`{command}`"[:MAX_TAG_LENGTH]}
    tags |= {SOURCE_TAG: "train.py", "mlflow.source.type": "LOCAL", "mlflow.user": get_user()}
    tags |= {key: value for key, value in run.choices.items() if value != "None" and key not in OUTER_CHOICES}
    if commit := run_git("rev-parse", "HEAD"):
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": str(bool(run_git("status", "--porcelain")))}
    tags |= {f"sweep.{key}": value for key, value in run.swept_values.items()}
    tags |= {"trial.number": str(trial)} if trial is not None else {}
    return tags | ({PARENT_TAG: parent} if parent else {})


def get_user() -> str:
    """Return who runs this process; a number where the system has no name for him, as in a container."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


@contract
def flatten_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings as dotted keys, without those that do not affect the training."""
    flat = dict[str, Any]()
    left = [(key, value) for key, value in [*config.items()][::-1] if key not in (*OUTER_KEYS, "name", "callbacks")]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{key}.{name}", inner) for name, inner in reversed(value.items())]
        else:
            flat[key] = value
    return flat


@contract
def select_params(settings: Mapping[str, Any], requested: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that say something, first those that the command line named.

    Of the others these are left out: null, how something is built, and what a top-level setting says already, as `optim.lr`
    where it equals `lr`.
    """
    top = {key: value for key, value in settings.items() if "." not in key}
    kept = dict[str, Any]()
    for key, value in settings.items():
        last = key.rpartition(".")[2]
        is_copy = "." in key and last in top and top[last] == value
        if key in requested or not (value is None or last in HYDRA_KEYS or is_copy):
            kept[key] = value
    return dict(sorted(kept.items(), key=lambda item: item[0] not in requested))


@contract
def format_best(metric: str) -> str:
    """Return the name of a metric's best value. Without a slash its chart stands below all the curves, and not above them."""
    return f"best.{metric.replace('/', '_')}"


@contract
def collect_results(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of summary.json that no curve ends with: every metric at the best evaluation, time and memory.

    They are logged at step 0, where MLflow draws bars to compare runs by.
    """
    results = {format_best(key): float(value) for key, value in summary.get("best", {}).items() if value is not None}
    results |= {key: value for key, value in summary.get("metrics", {}).items() if key.startswith("test/")}
    return results | {f"{SYSTEM}{key}": float(summary[key]) for key in ("wall_s", "peak_rss_mb") if key in summary}


@contract
def describe_data(name: str, data: Any) -> Any:
    """Return a run's data set as MLflow describes one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"source": data.source}), json.dumps({"train": len(data.train), "val": len(data.val)})
    entity = Dataset(name, data.digest[:DIGEST_LENGTH], "local", source, profile=profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])
