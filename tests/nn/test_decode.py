"""The logits of a decoder equal those of the model over all tokens at once."""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from research.data.spec import Tokens
from research.kernels import ternary
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.decode import Decoder
from research.nn.norm import RMSNorm
from research.nn.packed import pack_model

LIBRARY = ternary.get_library()
ISAS = list(LIBRARY.isas) if LIBRARY else []
needs_c = pytest.mark.skipif(LIBRARY is None, reason="no C compiler")
LAYOUTS = [
    {},
    {"activation": "relu2", "tie_embeddings": False, "sub_norm": False},
    {"heads": 4, "kv_heads": 1, "dim": 40, "ffn_dim": 50},  # sizes that do not fill whole tiles
    {"heads": 6, "kv_heads": 6, "dim": 96, "depth": 1},
]


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    if LIBRARY:
        LIBRARY.use(ISAS[0])


def make_transformer(linear: object = partial(BitLinear, backend="ste"), **settings: object) -> Transformer:
    torch.manual_seed(0)
    usual = {"dim": 64, "depth": 3, "heads": 4, "kv_heads": 2, "sub_norm": True, "init_std": 0.1}
    model = Transformer(Tokens(101, 48), linear=linear, **usual | settings)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def feed_tokens(decoder: Decoder, tokens: Tensor, prompt: int) -> Tensor:
    """Return the logits after the prompt and after each later token."""
    return torch.stack([decoder.feed(tokens[:prompt]), *(decoder.feed(token) for token in tokens[prompt:].split(1))])


def compute_kl(p: Tensor, q: Tensor) -> float:
    """Return the mean KL divergence of two sets of logits."""
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True).item()


@needs_c
@pytest.mark.parametrize("settings", LAYOUTS)
def test_c_agrees_with_the_model(settings: dict[str, object]) -> None:
    """Up to sums in another order, and to int8 codes that these move."""
    model = pack_model(make_transformer(**settings))
    tokens = torch.randint(101, (48,))
    expected = model(tokens[None])[0, 9:]
    first = None
    for isa in ISAS:
        assert LIBRARY
        LIBRARY.use(isa)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            decoder = Decoder(model)
            assert decoder.native
            logits = feed_tokens(decoder, tokens, 10)
            first = logits if first is None else first
            assert torch.equal(logits, first), "the same bits for every instruction set and number of threads"
    assert first is not None
    assert compute_kl(expected, first) < 1e-3
    torch.testing.assert_close(first, expected, rtol=0, atol=0.2)


@pytest.mark.parametrize(
    "model", [make_transformer(), make_transformer(nn.Linear), pack_model(make_transformer(), int8_embeddings=False)]
)
def test_other_models_use_their_own_layers(model: nn.Module) -> None:
    tokens = torch.randint(101, (30,))
    decoder = Decoder(model)
    assert decoder.native is None
    expected = model(tokens[None])[0, 9:]
    logits = feed_tokens(decoder, tokens, 10)
    assert compute_kl(expected, logits) < 1e-5
    assert (logits - expected).abs().amax(1).median() < 1e-5


def test_without_c_the_decoder_uses_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ternary, "get_library", lambda: None)
    model, tokens = pack_model(make_transformer()), torch.randint(101, (20,))
    decoder = Decoder(model)
    assert decoder.native is None
    assert compute_kl(model(tokens[None])[0, 4:], feed_tokens(decoder, tokens, 5)) < 1e-5


def test_a_decoder_forgets_on_reset() -> None:
    decoder, tokens = Decoder(pack_model(make_transformer())), torch.randint(101, (12,))
    once = feed_tokens(decoder, tokens, 4)
    decoder.reset()
    assert torch.equal(feed_tokens(decoder, tokens, 4), once)


def test_a_prompt_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt is processed in chunks; the head computes one position only."""
    model, tokens = make_transformer(nn.Linear), torch.randint(101, (40,))
    expected = Decoder(model).feed(tokens)
    monkeypatch.setattr("research.nn.decode.PROMPT_CHUNK", 16)
    seen: list[int] = []
    model.head.register_forward_hook(lambda head, inputs, y: seen.append(inputs[0].shape[1]))
    torch.testing.assert_close(Decoder(model).feed(tokens), expected)
    assert seen == [1]


def test_too_many_or_no_tokens_are_refused() -> None:
    model = pack_model(make_transformer())
    with pytest.raises(ValueError, match="max_seq_len=49: give 1 to 48"):
        Decoder(model, 49)
    decoder = Decoder(model, 5)
    decoder.feed(torch.arange(3))
    with pytest.raises(ValueError, match="3 tokens after 3: this decoder remembers at most 5"):
        decoder.feed(torch.arange(3))
    with pytest.raises(ValueError, match="0 tokens after 3"):
        decoder.feed(torch.arange(0))


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_c), False])
def test_an_unknown_token_is_reported(native: bool) -> None:
    decoder = Decoder(pack_model(make_transformer()))
    decoder.native = decoder.native if native else None
    for token in (-1, 101):
        with pytest.raises(ValueError, match=f"tokens from {token} to {token}: the vocabulary is 0 to 100"):
            decoder.feed(torch.tensor([token]))
    for tokens in (torch.tensor([1.5]), torch.tensor([True]), torch.tensor([[1]]), torch.tensor(1)):
        with pytest.raises((ValueError, TypeCheckError), match=r"give a 1-D tensor of int64 or int32|Int\[Tensor, 'seq'\]"):
            decoder.feed(tokens)
    assert decoder.caches[0].seq_len == 0


def test_an_interrupted_feed_reads_nothing() -> None:
    """As by Ctrl-C in a notebook, between two blocks."""
    decoder, tokens = Decoder(pack_model(make_transformer())), torch.randint(101, (9,))
    expected = [decoder.feed(part) for part in tokens.split(3)]
    decoder.reset()
    decoder.feed(tokens[:3])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = decoder.model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        decoder.feed(tokens[3:6])
    hook.remove()
    assert {cache.seq_len for cache in decoder.caches} == {3}
    assert all(torch.equal(decoder.feed(part), logits) for part, logits in zip(tokens[3:].split(3), expected[1:], strict=True))


@needs_c
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda decoder: pickle.loads(pickle.dumps(decoder))])
def test_a_copy_decodes_independently(copied: Callable[[Decoder], Decoder]) -> None:
    decoder, tokens = Decoder(pack_model(make_transformer())), torch.randint(101, (12,))
    expected = feed_tokens(decoder, tokens, 4)
    decoder.reset()
    feed_tokens(decoder, tokens[:8], 4)
    other = copied(decoder)
    assert other.native
    assert torch.equal(feed_tokens(other, tokens[8:], 1), expected[5:])
    other.model.norm.get_parameter("weight").data.zero_()
    assert torch.equal(feed_tokens(decoder, tokens[8:], 1), expected[5:]), "and the first decoder is unchanged"


@needs_c
def test_weights_loaded_in_place_take_effect() -> None:
    decoder, other, token = (
        Decoder(pack_model(make_transformer())),
        pack_model(make_transformer(init_std=0.2)),
        torch.tensor([7]),
    )
    before = decoder.feed(token)
    decoder.model.load_state_dict(other.state_dict())
    decoder.reset()
    after = decoder.feed(token)
    assert torch.equal(after, Decoder(other).feed(token))
    assert not torch.equal(after, before)


MOVES: dict[str, Callable[[nn.Module], object]] = {
    "type": lambda model: model.bfloat16(),
    "type of a norm": lambda model: model.get_submodule("norm").double(),
    "there and back": lambda model: model.double().float(),
    "loaded": lambda model: model.load_state_dict(pack_model(make_transformer()).state_dict(), assign=True),
}


@needs_c
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_weights_that_are_moved_or_replaced_are_refused(move: Callable[[nn.Module], object]) -> None:
    model = pack_model(make_transformer())
    decoder, token = Decoder(model), torch.tensor([7])
    expected = decoder.feed(token)
    model.float().cpu()  # moves nothing
    decoder.reset()
    assert torch.equal(decoder.feed(token), expected)
    move(model)
    with pytest.raises(ValueError, match="moved or replaced after this decoder was built: build a new Decoder"):
        decoder.feed(token)


@pytest.mark.parametrize("name", ["norm", "blocks.1.input_norm", "blocks.1.attention.attn_sub_norm", "blocks.1.post_norm"])
@pytest.mark.parametrize("replacement", [nn.LayerNorm(64), nn.RMSNorm(64, eps=1e-5), RMSNorm(64)])
def test_norms_that_c_does_not_compute_use_the_model(name: str, replacement: nn.Module) -> None:
    replacement = copy.deepcopy(replacement)
    if isinstance(replacement, RMSNorm):
        replacement.eps = 0.5
    unpacked = make_transformer()
    unpacked.set_submodule(name, replacement)
    model, tokens = pack_model(unpacked), torch.randint(101, (30,))
    decoder = Decoder(model)
    assert decoder.native is None
    assert compute_kl(model(tokens[None])[0, 9:], feed_tokens(decoder, tokens, 10)) < 1e-5
