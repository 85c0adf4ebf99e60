"""The generate command: from real runs, and from runs and arguments that it refuses."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from program import ROOT, TINY, forget_configurations, train
from program import run as run_program
from torch import Tensor

from research.export.verify import compare_distributions
from research.generate.__main__ import main
from research.generate.sampling import Sampler, cut_at_stop
from research.generate.stream import iter_tokens
from research.load import load_run
from research.nn.decode import Decoder
from research.nn.packed import pack_model

COMMAND = [sys.executable, "-m", "research.generate"]
Generate = Callable[..., tuple[int, str, str]]
GetRefusal = Callable[..., str]


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Generate:
    """Return the command as a function in this process: exit code, stdout, stderr."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def get_refusal(generate: Generate) -> GetRefusal:
    """Return the command as a function that asserts a refusal and returns its message."""

    def run_refused(*arguments: str) -> str:
        code, out, err = generate(*arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        return err

    return run_refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of bytes, trained for 60 steps on this package."""
    root = tmp_path_factory.mktemp("run")
    small = ["data.path=" + str(ROOT / "research"), "data.seq_len=48", "data.val_bytes=480", "model.dim=64", "model.heads=2"]
    own = ["data=text", "steps=60", "eval_every=60", "batch_size=16", "trainer.device=cpu", "tracker=jsonl", "precision=fp32"]
    train(root, *own, *small)
    (folder,) = (root / "out" / "text").iterdir()
    return folder


def test_speed_and_memory_are_reported_after_the_text(run: Path, generate: Generate) -> None:
    args = [str(run), "--prompt", "def é", "--tokens", "70", "--seed", "3"]  # beyond the 48 positions of the model
    done = run_program([*COMMAND[1:], *args], ROOT, dict(os.environ))
    assert done.stdout.startswith("def é")
    assert re.search(r"ternary weights packed: [\d,]+ tokens/s after \d+ ms for the first, [\d,]+ MB resident", done.stderr)
    assert generate(*args)[:2] == (0, done.stdout)


def test_unpacked_and_greedy_tokens_are_the_likeliest_of_the_model(run: Path, generate: Generate) -> None:
    _, out, err = generate(str(run), "--prompt", "import ", "--tokens", "20", "--temperature", "0", "--no-packed")
    tokens, model = list(b"import "), load_run(str(run)).model
    for _ in range(20):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert out == bytes(tokens).decode(errors="replace") + "\n"
    assert "in float32" in err


def test_embedding_and_head_in_int8_change_little(run: Path) -> None:
    """Packing changes nothing else: with embeddings in float32 the logits are equal."""
    trained = load_run(str(run))
    model, split = trained.model, trained.data.val
    tokens, targets = split[torch.arange(len(split))]
    divergence, before, after, _ = compare_distributions(model(tokens), pack_model(model)(tokens), targets)
    assert torch.equal(pack_model(model, int8_embeddings=False)(tokens), model(tokens))
    assert 0 < divergence < 1e-3
    assert abs(after / before - 1) < 5e-3  # of 480 bytes; on 4,096 docs/exports.md has 0.02 %


def test_run_may_be_a_checkpoint(run: Path, generate: Generate) -> None:
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    assert generate(str(checkpoint), "--prompt", "x", "--tokens", "1")[1].startswith("x")


def test_a_prompt_that_is_not_utf8_reaches_the_model_as_bytes(run: Path, generate: Generate) -> None:
    code, out, _ = generate(str(run), "--prompt", "a\udcffb", "--tokens", "1")
    assert code == 0
    assert out.startswith("a\ufffdb")


def test_ctrl_c_ends_with_one_line(run: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert generate(str(run), "--prompt", "x") == (130, "x\n", "stopped by SIGINT\n")


def test_ctrl_c_during_imports_ends_with_one_line(run: Path) -> None:
    process = subprocess.Popen([*COMMAND, str(run), "--prompt", "x"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for _ in range(1000):
        if "torch" in Path(f"/proc/{process.pid}/maps").read_text():  # torch is being imported
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "stopped by SIGINT\n"
    assert process.returncode == 130


def test_a_terminal_without_the_characters_or_without_space(run: Path) -> None:
    args = [*COMMAND, str(run), "--prompt", "é", "--tokens", "1"]
    own = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(args, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    assert done.stdout.startswith("\\xe9")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(args, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_an_unknown_run_id_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, get_refusal: GetRefusal) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    assert "has no run 0123456789abcdef0123456789abcdef of ours" in get_refusal("0123456789abcdef" * 2, "--prompt", "x")
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_ends_without_a_message(run: Path) -> None:
    """As in `| head -1`."""
    args = [*COMMAND, str(run), "--prompt", "x", "--tokens", "1000000"]
    process = subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.read(1) == b"x"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    process.stderr.close()


def test_weights_of_more_bits_are_not_packed(run: Path, tmp_path: Path, generate: Generate, get_refusal: GetRefusal) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("weight_bits: 1.58", "weight_bits: 4"))
    forget_configurations(copy)
    message = get_refusal(str(copy), "--prompt", "x")
    assert "linear.weight_bits=4" in message
    assert "--no-packed" in message
    assert generate(str(copy), "--prompt", "x", "--tokens", "1", "--no-packed")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--prompt", ""], '--prompt "": give at least one token'),
        (["{run}", "--prompt", "x", "--tokens", "0"], "--tokens 0: give at least 1"),
        (["{run}", "--prompt", "x", "--temperature", "-1"], "--temperature -1: give 0"),
        (["{run}", "--prompt", "x", "--temperature", "nan"], "--temperature nan: give 0"),
        (["{run}", "--prompt", "x", "--top-k", "-3"], "--top-k -3: give 0"),
        (["no/such", "--prompt", "x"], "RUN=no/such: there is no such folder"),
        (["{run}/plots", "--prompt", "x"], "has no config.yaml that can be read; give a run folder"),
        (["~nobody-of-that-name", "--prompt", "x"], "there is no such folder"),
        (["a" * 300, "--prompt", "x"], "there is no such folder"),
        (["{run}", "--prompt", "x", "--tokens", "many"], "argument --tokens/--max-new-tokens: invalid int value: 'many'"),
        (["{run}", "--prompt", "x", "--seed", "99999999999999999999"], "--seed 99999999999999999999: give a number from 0"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    run: Path, get_refusal: GetRefusal, arguments: list[str], message: str
) -> None:
    assert message in get_refusal(*(argument.format(run=run) for argument in arguments))


def test_tokens_of_other_data_are_numbers(tmp_path: Path, generate: Generate, get_refusal: GetRefusal) -> None:
    train(tmp_path, *TINY, "tracker=jsonl")
    (folder,) = (tmp_path / "out" / "modular").iterdir()
    assert re.fullmatch(r"3 11 5 \d+\n", generate(str(folder), "--prompt", "3 11 5", "--tokens", "1")[1])
    assert "numbers from 0 to 12" in get_refusal(str(folder), "--prompt", "3 x")
    for weights in (folder / "checkpoints").glob("step-*/model.safetensors"):
        weights.write_bytes(b"")
    message = get_refusal(str(folder), "--prompt", "3")
    assert re.search(r"^error: RUN=\S+: no usable checkpoint \(.*has 0 bytes.*\); give another run$", message)


def test_a_model_of_vectors_is_refused(tmp_path: Path, get_refusal: GetRefusal) -> None:
    train(tmp_path, "data=digits", "model=bitmlp", "model.dim=16", "trainer=debug", "tracker=jsonl")
    (folder,) = (tmp_path / "out" / "digits").iterdir()
    message = get_refusal(str(folder), "--prompt", "x")
    assert "has the model MLP" in message
    assert "model=transformer" in message


class CountingDecoder(Decoder):
    """A decoder whose next token is the number of tokens that it was fed."""

    def __init__(self) -> None:
        self.fed_tokens: list[list[int]] = []

    def reset(self) -> None:
        self.fed_tokens.append([])

    def feed(self, tokens: Int[Tensor, "seq"]) -> Float[Tensor, "vocab"]:
        self.fed_tokens[-1] += tokens.tolist()
        assert len(self.fed_tokens[-1]) <= 8
        return torch.nn.functional.one_hot(torch.tensor(len(self.fed_tokens[-1])), 10).float()


def test_a_full_model_continues_from_its_second_half() -> None:
    decoder = CountingDecoder()
    assert list(iter_tokens(decoder, [0] * 3, 8, Sampler(0.0), 7)) == [3, 4, 5, 6, 7, 8, 4]
    assert decoder.fed_tokens[1] == [5, 6, 7, 8]
    decoder = CountingDecoder()
    list(iter_tokens(decoder, list(range(20)), 8, Sampler(0.0), 1))
    assert decoder.fed_tokens == [list(range(12, 20))]


def test_the_sampler_follows_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler = Sampler(temperature=0.5, seed=1)
    counts = torch.bincount(torch.tensor([sampler(logits) for _ in range(4000)]), minlength=4) / 4000
    torch.testing.assert_close(counts, (logits / 0.5).softmax(-1), atol=0.03, rtol=0)
    drawn = {Sampler(temperature=5.0, top_k=2, seed=seed)(logits) for seed in range(50)}
    assert drawn == {0, 1}
    assert Sampler(temperature=0.0)(logits) == 0


def test_top_p_draws_from_the_fewest_tokens_that_have_the_share() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[[2, 0, 3, 1]]  # 0.15, 0.5, 0.05, 0.3
    for top_p, expected in ((0.4, {1}), (0.5, {1}), (0.51, {1, 3}), (0.8, {1, 3}), (0.9, {0, 1, 3}), (1.0, {0, 1, 2, 3})):
        drawn = {Sampler(temperature=1.0, top_p=top_p, seed=seed)(logits) for seed in range(300)}
        assert drawn == expected, top_p
    assert {Sampler(temperature=1.0, top_k=3, top_p=0.82, seed=seed)(logits) for seed in range(300)} == {1, 3}, "of the three"


@given(st.lists(st.binary(max_size=3), max_size=12), st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_text_is_cut_before_the_first_stop_however_it_comes(chunks: list[bytes], stops: list[bytes]) -> None:
    text = b"".join(chunks)
    printed = b"".join(cut_at_stop(iter(chunks), stops))
    first = next((n for n in range(len(chunks) + 1) if any(stop in b"".join(chunks[:n]) for stop in stops)), len(chunks))
    seen = b"".join(chunks[:first])  # a stop is met once it is whole
    end = min((index for stop in stops if (index := seen.find(stop)) >= 0), default=len(text))
    assert printed == text[:end]


def test_the_command_ends_before_a_stop(run: Path, generate: Generate) -> None:
    _, whole, _ = generate(str(run), "--prompt", "a", "--tokens", "60", "--seed", "3")
    stop = whole[20:23]
    typed = stop.replace("\n", r"\n").replace("\t", r"\t")
    _, cut, words = generate(str(run), "-p", "a", "--max-new-tokens", "60", "--seed", "3", "--stop", typed)
    assert "the text ended after" in words
    assert cut.rstrip("\n") == whole[: whole.index(stop, 1)]
    assert "note" not in words


def test_a_prompt_without_the_separator_of_pairs_is_told(run: Path, generate: Generate, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    forget_configurations(copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("\ndata:\n", "\ndata:\n  separator: ' => '\n"))
    for prompt, is_told in (("a", True), ("a => ", False)):
        _, _, words = generate(str(copy), "-p", prompt, "--tokens", "1")
        assert ("learnt targets behind ' => '" in words) == is_told
