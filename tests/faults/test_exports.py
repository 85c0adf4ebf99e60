"""Row 24: what the programs that exports are for do with the files beyond one forward pass: real clients."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import make_source
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from research.data.spec import Tokens
from research.data.tokenizers import TOKENIZER_FOLDER, Bytes
from research.export import gguf, hf, layout, onnx, safetensors, verify
from research.files.silence import silence_libraries
from research.load import TEXT_TARGETS, TrainedRun
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def make_text_source(**numbers: Any) -> layout.Source:
    """Return a model of bytes, as if trained on text."""
    source = make_source()
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"dim": 32, "depth": 1, "heads": 2, "ffn_dim": 48, "sub_norm": True, "init_std": 0.2} | numbers
    model = Transformer(Tokens(256, 32), linear=BitLinear, **sizes).eval().requires_grad_(False)
    source.run.config.data._target_ = TEXT_TARGETS[0]
    run = TrainedRun(source.run.folder, source.run.checkpoint, source.run.config, model)
    return layout.build_source(run)


@pytest.mark.parametrize(
    ("target", "tokenizer", "name"), [("mine", None, None), ("mine", Bytes(), "bytes"), (TEXT_TARGETS[0], None, "bytes")]
)
def test_a_run_that_saved_a_tokenizer_is_of_text(
    tmp_path: Path, target: str, tokenizer: Bytes | None, name: str | None
) -> None:
    """A tokenizer of bytes writes no file, and older runs no folder."""
    if tokenizer:
        tokenizer.save(tmp_path / TOKENIZER_FOLDER)
    run = TrainedRun(tmp_path, tmp_path, OmegaConf.create({"data": {"_target_": target}}), make_text_source().model)
    assert (run.is_text, run.tokenizer and run.tokenizer.name) == (name is not None, name)


def load_pretrained(folder: Path, **settings: Any) -> Any:
    with silence_libraries():
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **settings).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of bytes, written for transformers with the defaults."""
    folder = tmp_path_factory.mktemp("hf")
    hf.write(make_text_source(), folder, layout.Options())
    return folder


@pytest.fixture(scope="module")
def tokenizer(exported: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(exported, local_files_only=True)


def test_transformers_makes_a_batch_of_prompts(exported: Path, tokenizer: Any) -> None:
    """Each is continued as it is alone."""
    prompts = ["ab", "\u0100 c", "x"]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    lengths = [len(prompt.encode()) for prompt in prompts]
    assert batch["attention_mask"].tolist() == [[0] * (4 - n) + [1] * n for n in lengths]
    assert batch["input_ids"].tolist() == [[Bytes.end] * (4 - len(p.encode())) + list(p.encode()) for p in prompts]
    model = load_pretrained(exported)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        together = model.generate(**batch, max_new_tokens=4, do_sample=False)
        for prompt, row in zip(prompts, together, strict=True):
            alone = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=4, do_sample=False)[0]
            count = len(prompt.encode())
            assert row[4:].tolist()[: len(alone) - count] == alone[count:].tolist()
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, model.config.eos_token_id) == (Bytes.end,) * 3


def test_no_text_is_taken_for_a_mark_of_padding(tokenizer: Any) -> None:
    """U+0100 spells the zero byte in the vocabulary."""

    @given(st.text(st.one_of(st.sampled_from("\u0100\0a "), st.characters(exclude_categories=["Cs"])), max_size=20))
    def check(text: str) -> None:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()
    assert "\u0100" in verify.PROBE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_default_packing_loads_in_half_precision_and_can_be_saved(
    exported: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = make_text_source().model(tokens).log_softmax(-1)
    model = load_pretrained(exported, dtype=dtype)
    model.save_pretrained(tmp_path)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        logits, again = (net(tokens, use_cache=False).logits for net in (model, load_pretrained(tmp_path, dtype=dtype)))
    assert logits.dtype == dtype
    assert torch.equal(logits, again)
    divergence = (expected.exp() * (expected - logits.float().log_softmax(-1))).sum(-1).mean()
    assert divergence < (1e-4 if dtype == torch.float32 else 5e-3)


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
@pytest.mark.parametrize(("seq_len", "length"), [(32, 32), (255, 255), (256, 256), (300, 256), (512, 512), (1000, 768)])
def test_llama_cpp_reads_a_length_that_holds(tmp_path: Path, seq_len: int, length: int) -> None:
    """It rounds a context up to 256 tokens, so that n_ctx=0 would go past what was trained."""
    from gguf import GGUFReader

    source = make_source()
    source.model.max_seq_len = seq_len
    warnings = gguf.write(source, tmp_path, layout.Options())
    (value,) = GGUFReader(tmp_path / gguf.FILE).fields["bitnet.context_length"].parts[-1].tolist()
    assert value == length
    assert any("llama.cpp rounds a context up" in warning for warning in warnings) == (seq_len % 256 > 0)


def test_onnx_names_its_axes_and_refuses_what_is_no_token(tmp_path: Path) -> None:
    import onnxruntime

    source = make_source()
    onnx.write(source, tmp_path, layout.Options())
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / onnx.FILE, settings)
    assert [value.shape for value in session.get_inputs()] == [["batch", "seq"]]
    assert [value.shape for value in session.get_outputs()] == [["batch", "seq", 48]]
    tokens = np.array([[3, 47, 0]])
    with torch.no_grad():
        expected = source.model(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(session.run(None, {"tokens": tokens})[0], expected, rtol=1e-3, atol=1e-3)
    for wrong in (-1, -48, 48, -(1 << 40)):
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, {"tokens": np.array([[3, wrong]])})


def test_the_reader_in_numpy_refuses_a_negative_token(tmp_path: Path) -> None:
    source = make_source()
    safetensors.write(source, tmp_path, layout.Options())
    with pytest.raises(IndexError, match="token -1: the vocabulary is 0 to 47"):
        safetensors.read(source, tmp_path, torch.tensor([[3, -1]]), layout.Options())


class Bigram(nn.Module):
    """A model of one's own, which no export holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 11)


def test_a_refused_model_is_told_the_way_that_works_today(tmp_path: Path) -> None:
    """And it works."""
    from safetensors.torch import load_model, save_model

    run = TrainedRun(Path("run"), Path("run"), OmegaConf.create({"data": {"_target_": "none"}}), Bigram())
    with pytest.raises(ValueError, match=r"load it in Python, as research\.load\.load_run\(RUN\)\.model") as refused:
        layout.build_source(run)
    assert "safetensors.torch.save_model(model, FILE) writes its float32 weights" in str(refused.value)
    save_model(run.model, str(tmp_path / "model.safetensors"))
    other = Bigram()
    load_model(other, tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), run.model.parameters(), strict=True))
