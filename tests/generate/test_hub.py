"""Text from a run of a pretrained folder: its own tokens and cache, as transformers generates; the folder may be gone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained import MORE, TEXT, make_folder, make_net
from program import train

from research.data.spec import Tokens
from research.generate.__main__ import main
from research.generate.hub import HubDecoder
from research.generate.sampling import Sampler
from research.generate.stream import iter_tokens
from research.load import load_run
from research.models.hub import Hub
from research.nn.bitlinear import bitlinear_layers
from research.nn.packed import pack_model

pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, at its import


def take(model: Hub, prompt: list[int], count: int) -> list[int]:
    return list(iter_tokens(HubDecoder(model), prompt, model.max_seq_len, Sampler(temperature=0), count))


def generate_greedily(net: Any, prompt: list[int], count: int) -> list[int]:
    tokens = net.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0)
    return list(map(int, tokens[0, len(prompt) :]))


@pytest.mark.parametrize("kind", MORE)
def test_greedy_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Up to the last position, past a sliding window of 16."""
    model = Hub(Tokens(304, 24), folder=str(make_folder(tmp_path / kind, kind))).eval()
    assert model.max_seq_len == 48
    prompt = [5, 17, 80, 200, 3, 9]
    assert take(model, prompt, 40) == generate_greedily(make_net(kind), prompt, 40)


def test_a_model_without_a_cache_reads_all_tokens_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Hub(Tokens(304, 24), folder=str(make_folder(tmp_path / "llama"))).eval()
    expected, forward = take(model, [5, 17, 80], 12), model.net.forward

    def forward_without_cache(**kwargs: Any) -> Any:
        return forward(input_ids=kwargs["input_ids"], use_cache=False)

    monkeypatch.setattr(model.net, "forward", forward_without_cache)
    assert take(model, [5, 17, 80], 12) == expected


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a ternary run of a folder that is gone, with a bit of training."""
    root = tmp_path_factory.mktemp("hub")
    folder = make_folder(root / "a folder")
    (root / "text.txt").write_text(TEXT)
    own = ["model=hub", f"model.folder='{folder}'", "data=text", f"data.path={root / 'text.txt'}", "data.seq_len=24"]
    own += ["model.linear.warmup=0.5", "model.keep_blocks=[0]", "data.val_bytes=200"]
    train(root, *own, "steps=20", "eval_every=20", "batch_size=4", "trainer.device=cpu", "tracker=jsonl", "precision=fp32")
    shutil.rmtree(folder)
    (found,) = (root / "out" / "text").iterdir()
    return found


def test_a_run_generates_although_its_folder_is_gone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_run(str(run))
    assert next(iter(bitlinear_layers(trained.model))).startswith("net.model.layers.1.")
    assert trained.tokenizer
    assert main([str(run), "--prompt", "The quick", "--temperature", "0", "--tokens", "8", "--no-packed"]) == 0
    out, err = capsys.readouterr()
    prompt = [int(token) for token in trained.tokenizer.encode([b"The quick"])[0]]
    assert isinstance(trained.model, Hub)
    expected = generate_greedily(trained.model.net, prompt, 8)
    expected = expected[: expected.index(trained.tokenizer.end)] if trained.tokenizer.end in expected else expected
    assert out == "The quick" + trained.tokenizer.decode(expected).decode(errors="replace") + "\n"
    assert "in float32: " in err
    assert main([str(run), "--prompt", "The quick", "--stop", "dog", "--top-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert "ternary weights packed: " in err
    assert "tokens/s" in err
    assert "dog" not in out


def test_packed_layers_compute_the_same(run: Path) -> None:
    model, tokens = load_run(str(run)).model, torch.arange(24)[None]
    assert torch.equal(pack_model(model, int8_embeddings=False)(tokens), model(tokens))
    torch.testing.assert_close(pack_model(model)(tokens), model(tokens), atol=0.3, rtol=0.1)
