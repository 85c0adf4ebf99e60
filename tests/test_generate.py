"""Going on with a text, as a user asks for it: from real runs, and from runs that cannot."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int
from program import ROOT, TINY, train
from torch import Tensor

from research.generate import Sampler, main, symbols
from research.trained import load


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "research.generate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What the command says where it cannot: in this process, which has imported all it needs."""

    def told(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["generate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert (shown.out, len(shown.err.splitlines())) == ("", 1)
        return shown.err

    return told


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes that has seen a little of this package."""
    place = tmp_path_factory.mktemp("run")
    small = ["data.path=" + str(ROOT / "research"), "data.length=48", "data.val_bytes=480", "model.dim=64", "model.heads=2"]
    own = ["data=text", "steps=60", "eval_every=60", "batch_size=16", "trainer.device=cpu", "tracker=jsonl", "precision=fp32"]
    train(place, *own, *small)
    (folder,) = (place / "out" / "text").iterdir()
    return folder


def test_it_streams_and_tells_speed_and_memory(run: Path) -> None:
    done = generate(str(run), "--prompt", "def é", "--tokens", "70", "--seed", "3")  # beyond the 48 positions of the model
    assert done.stdout.startswith("def é")
    assert re.search(r"ternary weights packed: [\d,]+ tokens/s after \d+ ms for the first, [\d,]+ MB resident", done.stderr)
    assert done.stdout == generate(str(run), "--prompt", "def é", "--tokens", "70", "--seed", "3").stdout


def test_unpacked_and_greedy_it_is_what_the_model_says(run: Path) -> None:
    done = generate(str(run), "--prompt", "import ", "--tokens", "20", "--temperature", "0", "--no-packed")
    seen, model = list(b"import "), load(str(run)).model
    for _ in range(20):
        seen.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
    assert done.stdout == bytes(seen).decode(errors="replace") + "\n"
    assert "in float32" in done.stderr


def test_a_checkpoint_will_do(run: Path) -> None:
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    assert generate(str(checkpoint), "--prompt", "x", "--tokens", "1").stdout.startswith("x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}", "--prompt", ""], '--prompt "": give at least one symbol'),
        (["{run}", "--prompt", "x", "--tokens", "0"], "--tokens 0: give at least 1"),
        (["{run}", "--prompt", "x", "--temperature", "-1"], "--temperature -1: give 0"),
        (["{run}", "--prompt", "x", "--temperature", "nan"], "--temperature nan: give 0"),
        (["{run}", "--prompt", "x", "--top-k", "-3"], "--top-k -3: give 0"),
        (["no/such", "--prompt", "x"], "RUN=no/such: there is no such folder"),
        (["{run}/plots", "--prompt", "x"], "has no config.yaml; give a run folder"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(run: Path, refused: Refused, arguments: list[str], told: str) -> None:
    assert told in refused(*(argument.format(run=run) for argument in arguments))


def test_symbols_that_are_numbers(tmp_path: Path, refused: Refused) -> None:
    train(tmp_path, *TINY, "tracker=jsonl")
    (folder,) = (tmp_path / "out" / "modular").iterdir()
    shown = generate(str(folder), "--prompt", "3 11 5", "--tokens", "1").stdout
    assert re.fullmatch(r"3 11 5 \d+\n", shown)
    assert "numbers from 0 to 12" in refused(str(folder), "--prompt", "3 x")
    for weights in (folder / "checkpoints").glob("step-*/model.safetensors"):
        weights.write_bytes(b"")
    told = refused(str(folder), "--prompt", "3")
    assert re.search(r"^error: RUN=\S+: no usable checkpoint \(.*has 0 bytes.*\); give another run$", told)


def test_vectors_are_no_text(tmp_path: Path, refused: Refused) -> None:
    train(tmp_path, "data=digits", "model=bitmlp", "model.dim=16", "trainer=debug", "tracker=jsonl")
    (folder,) = (tmp_path / "out" / "digits").iterdir()
    assert "is a MLP: only models of sequences" in refused(str(folder), "--prompt", "x")


class Parrot:
    """A decoder whose next symbol is the number of symbols that it has been fed."""

    def __init__(self) -> None:
        self.fed: list[list[int]] = []

    def reset(self) -> None:
        self.fed.append([])

    def feed(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        self.fed[-1] += tokens.tolist()
        assert len(self.fed[-1]) <= 8
        return torch.nn.functional.one_hot(torch.tensor(len(self.fed[-1])), 10).float()


def first(stream: Iterator[int], count: int) -> list[int]:
    return [next(stream) for _ in range(count)]


def test_where_the_model_is_full_its_second_half_goes_on() -> None:
    parrot = Parrot()
    assert first(symbols(parrot, [0] * 3, 8, Sampler(0.0)), 7) == [3, 4, 5, 6, 7, 8, 4]  # type: ignore[arg-type]
    assert parrot.fed[1] == [5, 6, 7, 8]
    parrot = Parrot()
    first(symbols(parrot, list(range(20)), 8, Sampler(0.0)), 1)  # type: ignore[arg-type]
    assert parrot.fed == [list(range(12, 20))]


def test_the_sampler_draws_as_the_logits_say() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler = Sampler(temperature=0.5, seed=1)
    counts = torch.bincount(torch.tensor([sampler(logits) for _ in range(4000)]), minlength=4) / 4000
    torch.testing.assert_close(counts, (logits / 0.5).softmax(-1), atol=0.03, rtol=0)
    among = {Sampler(temperature=5.0, top_k=2, seed=seed)(logits) for seed in range(50)}
    assert among == {0, 1}
    assert Sampler(temperature=0.0)(logits) == 0
