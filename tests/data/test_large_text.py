"""A text of 2 GB under an address-space limit of 1 GB above what torch itself takes: the same order and bits as without."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from program import ROOT, read_metrics

from research.data import bins
from research.data.spec import Tokens
from research.losses import next_token
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.seeding import sample_indices

pytestmark = pytest.mark.slow

SIZE = 2 * 10**9
LINE = b"0000000000 the packed ternary layers of a network learn to read text\n"
PROGRAM = """
import hashlib, re, resource, runpy, sys
import torch
torch.nn.Linear(8, 8)(torch.randn(4, 8)).sum().backward()  # with its threads and arenas
if (extra := int(sys.argv.pop(1))):
    size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, size + extra))
from pathlib import Path
from research.data import text
from research.training.batches import Batches
text.CACHE = Path(sys.argv.pop(1))
draw = Batches._load
def load(self, parts):
    for x, y in draw(self, parts):
        print("batch", *(hashlib.sha256(pair.numpy().tobytes()).hexdigest()[:8] for pair in torch.stack((x, y), 1)), flush=True)
        yield x, y
Batches._load = load
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
SETTINGS = ["data=text", "tracker=jsonl", "batch_size=8", "steps=6", "eval_every=3", "data.val_bytes=4096", "model.depth=1"]
SETTINGS += [
    "trainer.device=cpu",
    "trainer.log_every=1",
    "schedule=constant",
    "callbacks.checkpoint.every=3",
    "precision=fp32",
    "optim=adamw",
]


def write_numbered_lines(file: Path, size: int) -> None:
    """Write lines that differ in their numbers, a million at a time."""
    count = 10**6
    block = np.tile(np.frombuffer(LINE, dtype=np.uint8), count).reshape(count, len(LINE))
    with file.open("wb") as stream:
        for start in range(0, size // len(LINE), count):
            numbers = np.arange(start, start + count)
            for digit in range(10):
                block[:, 9 - digit] = 48 + numbers // 10**digit % 10
            stream.write(block.tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large")
    write_numbered_lines(path / "lines.txt", SIZE)
    yield path
    for file in path.rglob("*"):  # pytest keeps what the last three sessions wrote
        if file.is_file() and file.stat().st_size > 10**8:
            file.unlink()


def read_rows(process: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Return the digests of the rows of each batch that a run read."""
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    lines = [line for line in process.stdout.splitlines() if line.startswith("batch ")]
    return [line.removeprefix("batch ").split() for line in lines]


class Result:
    """What a run leaves: the rows of its batches, its metrics and its weights."""

    def __init__(self, process: subprocess.CompletedProcess[str], out: Path) -> None:
        self.rows = read_rows(process)
        (self.folder,) = (path.parent for path in out.rglob("summary.json"))
        self.metrics = read_metrics(self.folder)

    def read_weights(self) -> bytes:
        return (self.folder / "checkpoints" / "step-00000006" / "model.safetensors").read_bytes()


def train(
    folder: Path, name: str, *settings: str, limit: int = 1 << 30, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    paths = [f"data.path={folder / 'lines.txt'}", f"out={folder / name}"]
    words = [str(limit), str(folder / "cache"), *SETTINGS, *paths, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(variables or {})}
    return subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def limited(folder: Path) -> Result:
    """The first run, which makes the tokens, under the limit."""
    return Result(train(folder, "limited"), folder / "limited")


def test_it_trains_under_the_limit_with_the_bits_of_a_run_without(folder: Path, limited: Result) -> None:
    free = Result(train(folder, "free", limit=0), folder / "free")
    assert len(limited.rows) == 6
    assert limited.rows == free.rows
    assert limited.metrics == free.metrics
    assert limited.read_weights() == free.read_weights()


def test_a_resumed_run_reads_and_learns_the_same(folder: Path, limited: Result) -> None:
    first = Result(train(folder, "first", "steps=3"), folder / "first")
    rest = read_rows(train(folder, "rest", f"resume={first.folder}", "steps=6"))  # in the first one's folder
    assert first.rows + rest == limited.rows
    assert first.read_weights() == limited.read_weights()


def test_two_processes_read_the_same(folder: Path, limited: Result) -> None:
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871", "WORLD_SIZE": "2"}

    def start(rank: str) -> subprocess.CompletedProcess[str]:
        return train(folder, "two", "trainer.parallel=ddp", variables=variables | {"RANK": rank, "LOCAL_RANK": rank})

    with ThreadPoolExecutor(2) as pool:
        one, other = (Result(process, folder / "two") for process in pool.map(start, "01"))
    assert [a + b for a, b in zip(one.rows, other.rows, strict=True)] == limited.rows
    losses = [[line["train/loss"] for line in run.metrics if "train/loss" in line] for run in (one, limited)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_batch_costs_a_hundredth_of_its_step_at_most(folder: Path, limited: Result) -> None:
    """Of the step of experiment=text, its forward and backward pass alone; both in turn."""
    stream = next((folder / "cache").glob("*/train.bin"))
    samples = bins.Bins(stream, np.dtype(np.uint8), stream.stat().st_size, 256)
    assert len(samples) > 7 * 10**6
    model = Transformer(Tokens(256, 256), 128, 2, 4, BitLinear, sub_norm=True)
    batches, steps = list[float](), list[float]()
    for step in range(60):
        start = time.perf_counter()
        x, y = samples[sample_indices(0, step * 8, 8, len(samples))]
        batches.append(time.perf_counter() - start)
        if step % 10 == 0:
            start = time.perf_counter()
            next_token(model(x), y).mean().backward()
            steps.append(time.perf_counter() - start)
    assert median(batches) < 0.01 * median(steps)


def test_windows_are_those_of_the_text(folder: Path, limited: Result) -> None:
    stream = next((folder / "cache").glob("*/train.bin"))
    samples = bins.Bins(stream, np.dtype(np.uint8), stream.stat().st_size, 256)
    number = 5_000_000
    x, y = samples[torch.tensor([number])]
    with (folder / "lines.txt").open("rb") as text:
        text.seek(number * 256)
        assert bytes(x[0].tolist()) + bytes(y[0, -1:].tolist()) == text.read(257)
