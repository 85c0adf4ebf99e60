"""Row 25: where generated text ends, what a terminal is sent, and prompts and runs that were misread."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from program import train

from research.files.locks import lock
from research.generate.__main__ import main
from research.generate.sampling import Sampler

Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of bytes that has learnt where a document ends: after two digits."""
    root = tmp_path_factory.mktemp("documents")
    (root / "documents").mkdir()  # not beside the run, whose overrides.txt is a text as well
    for number in range(10, 100):
        (root / "documents" / f"{number}.txt").write_text(str(number))
    data = ["data=text", f"data.path={root / 'documents'}", "data.pattern=*.txt", "data.seq_len=12", "data.val_bytes=12"]
    model = ["model.dim=32", "model.depth=1", "model.heads=2", "batch_size=8", "lr=0.02", "precision=fp32"]
    train(root, *data, *model, "steps=80", "eval_every=80", "trainer.device=cpu", "tracker=jsonl")
    (folder,) = (root / "out" / "text").iterdir()
    return folder


@pytest.fixture
def generate(run: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Return the command with that run, in this process: exit code, stdout, stderr."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main([str(run), *arguments])
        except SystemExit as ended:
            code = int(str(ended.code))
        return code, *capsys.readouterr()

    return run_command


def choose(monkeypatch: pytest.MonkeyPatch, content: Sequence[int]) -> None:
    """Let the sampler choose these tokens, whatever the model computes."""
    tokens = iter(content)
    monkeypatch.setattr(Sampler, "__call__", lambda *_: next(tokens))


@pytest.mark.parametrize("packing", ["--packed", "--no-packed"])
def test_text_ends_where_its_document_does(generate: Generate, packing: str) -> None:
    for prompt in ("12", "34\x0056"):
        assert generate("--prompt", prompt, "--temperature", "0", packing)[:2] == (0, f"{prompt}\n")
    form = "ternary weights packed" if packing == "--packed" else "in float32"
    err = generate("--prompt", "78", "--temperature", "0", packing)[2]
    assert re.fullmatch(rf"{form}: no token, [\d,]+ MB resident; the document ended after 0 of 200 tokens\n", err)


@pytest.mark.parametrize(("content", "shown"), [(b"a\0b", "a"), (b"\0", ""), (b"ab\xc3\0\xa9", "ab\ufffd"), (b"abc", "abc")])
def test_nothing_after_the_end_is_printed(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, content: bytes, shown: str
) -> None:
    choose(monkeypatch, content)
    code, out, err = generate("--prompt", "x", "--tokens", str(len(content)))
    assert (code, out) == (0, f"x{shown}\n")
    assert ("the document ended" in err) == (0 in content)


CONTROLS = [*range(1, 0x20), 0x7F, *range(0x80, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]


def test_a_terminal_is_sent_no_control_character(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that clears the screen or sets its title: they are shown instead. Of the prompt, too."""
    text = "".join(map(chr, CONTROLS)) + "\x1b]0;title\x07é漢"
    choose(monkeypatch, text.encode())
    reader, writer = os.openpty()
    with open(writer, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert main([str(run), "--prompt", "\x1b[2J>", "--tokens", str(len(text.encode()))]) == 0
        sent = b""
        while not sent.endswith("漢\r\n".encode()):
            sent += os.read(reader, 1 << 16)
    os.close(reader)
    codes = "".join(
        chr(code) if chr(code) in "\n\t" else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in CONTROLS
    )
    expected = rf"\x1b[2J>{codes}\x1b]0;title\x07é漢" + "\n"
    assert sent.decode() == expected.replace("\n", "\r\n")  # the terminal's own line ends


def test_a_file_gets_the_text_as_it_is(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(map(chr, CONTROLS))
    choose(monkeypatch, text.encode())
    assert generate("--prompt", "\x1b>", "--tokens", str(len(text.encode())))[1] == f"\x1b>{text}\n"


@pytest.mark.parametrize("prompt", ["-x", "--", "--tokens", "-1", "--prompt", "- ", "-"])
def test_a_prompt_may_begin_with_a_dash(generate: Generate, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    for words in (["--prompt", prompt], [f"--prompt={prompt}"], ["--pro", prompt], ["--prompt", "first", "--prompt", prompt]):
        choose(monkeypatch, b"!")
        assert generate(*words, "--tokens", "1")[:2] == (0, f"{prompt}!\n")


@pytest.mark.parametrize(("tokens", "reason"), [("0", "at least 1"), ("99999999999999999999", f"at most {sys.maxsize}")])
def test_a_number_of_tokens_that_cannot_be_is_refused(generate: Generate, tokens: str, reason: str) -> None:
    assert generate("--prompt", "x", "--tokens", tokens) == (2, "", f"error: --tokens {tokens}: give {reason}\n")


def test_a_prompt_that_was_forgotten_is_asked_for(generate: Generate) -> None:
    assert generate("--prompt") == (2, "", "error: argument --prompt/-p: expected one argument\n")
    assert generate() == (2, "", "error: the following arguments are required: --prompt/-p\n")


def test_a_run_before_its_first_checkpoint_is_given_time(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    young = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with lock(young, "in training"):
        assert main([str(young), "--prompt", "x"]) == 2
    message = "it is in training and has saved no checkpoint yet; wait for its first, or give another run"
    assert capsys.readouterr().err == f"error: RUN={young}: {message}\n"
    assert main([str(young), "--prompt", "x"]) == 2  # nobody trains it any more
    assert "give another run" in (err := capsys.readouterr().err)
    assert "wait" not in err
    with lock(run, "in training"):
        assert main([str(run), "--prompt", "x", "--tokens", "1"]) == 0


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.0), Sampler(top_k=2)])
def test_a_model_that_computes_no_numbers_is_named(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="the model computes NaN; give an earlier checkpoint"):
        sampler(torch.tensor([0.0, float("nan"), 1.0]))
