"""The transformer of the grokking papers against torch's own layers over all positions."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.data.modular import modular
from research.data.spec import Tokens
from research.losses import last_token
from research.models.decoder import Decoder
from research.nn.bitlinear import BitLinear, bitlinear_layers
from research.nn.blocks import recompute
from research.optim.schedules import constant
from research.training.state import Callback, State
from research.training.trainer import Trainer

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


class ReferenceBlock(nn.Module):
    """A block as in the code of Lee et al. 2024 (main.py), at every position."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype).triu(1)
        x = self.ln_1(x)
        x = x + self.attn(x, x, x, attn_mask=mask, need_weights=False)[0]
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class Reference(nn.Module):
    """The whole model of torch's layers, with the weights of a decoder."""

    def __init__(self, model: Decoder, heads: int) -> None:
        super().__init__()
        vocab, dim = model.embed.weight.shape
        self.embed, self.position = nn.Embedding(vocab, dim), nn.Embedding(model.position.num_embeddings, dim)
        hidden = model.get_parameter("blocks.0.up_proj.weight").shape[0]
        self.blocks = nn.Sequential(*(ReferenceBlock(dim, heads, hidden) for _ in model.blocks))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)
        self.double().load_state_dict(rename_tensors({name: p.detach() for name, p in model.named_parameters()}))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits[:, -1:]


NAMES = {"input_norm": "ln_1", "post_norm": "ln_2", "o_proj": "attn.out_proj", "up_proj": "mlp.0", "down_proj": "mlp.2"}


def rename_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a decoder's tensors by the names of the reference, whose attention has one matrix for three."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "q_proj" in name:
            joint = torch.cat([tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            renamed[name.replace("q_proj.", "attn.in_proj_")] = joint
        elif "k_proj" not in name and "v_proj" not in name:
            for ours, theirs in NAMES.items():
                name = name.replace(ours, theirs)
            renamed[name] = tensor
    return renamed


def build(linear: Any = nn.Linear, depth: int = 2, heads: int = 4, ffn_dim: int = 0) -> Decoder:
    """Return a decoder with random biases and norms: the initial 0 and 1 would hide where they are applied."""
    torch.manual_seed(0)
    model = Decoder(Tokens(11, 5), 32, depth, heads, linear, ffn_dim)
    for name, p in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(p, p.mean().item(), 0.3)
    return model


@pytest.mark.parametrize(("depth", "heads", "ffn_dim"), [(1, 1, 0), (2, 4, 0), (3, 2, 48)])
def test_the_last_position_and_its_gradients_equal_torchs_layers(depth: int, heads: int, ffn_dim: int) -> None:
    """Also for a sequence shorter than those of the data."""
    model = build(depth=depth, heads=heads, ffn_dim=ffn_dim).double()
    reference = Reference(model, heads)
    tokens, targets = torch.randint(11, (7, 5)), torch.randint(11, (7,))
    for length in (5, 3):
        y, expected = model(tokens[:, :length]), reference(tokens[:, :length])
        assert y.shape == (7, 1, 11)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-12)
        for logits in (y, expected):
            F.cross_entropy(logits[:, -1], targets).backward()  # the gradients add up
    gradients = rename_tensors({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    expected_gradients = {name: p.grad for name, p in reference.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-12, msg=f"{name}: {{}}".format)


def test_float32_differs_by_rounding_errors_only() -> None:
    model = build()
    tokens = torch.randint(11, (7, 5))
    expected = Reference(model, 4)(tokens)
    assert ((model(tokens) - expected).norm() / expected.norm()).item() < 1e-6


def test_recomputed_blocks_give_the_same_gradients() -> None:
    tokens, gradients = torch.randint(11, (7, 5)), []
    for recomputes in (False, True):
        model = build()
        if recomputes:
            recompute(model)
        model(tokens).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_the_papers_model_has_its_number_of_parameters() -> None:
    model = Decoder(modular(p=97).shape, 128, 2, 4, nn.Linear)
    assert sum(p.numel() for p in model.parameters()) == 422_656


@pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
def test_attention_is_initialised_as_torchs(linear: Any) -> None:
    """Xavier over the joint matrix of query, key and value, zero biases; the output as a linear layer."""
    torch.manual_seed(0)
    dim = 128
    model, theirs = Decoder(Tokens(11, 4), dim, 2, 4, linear), nn.MultiheadAttention(dim, 4)
    assert theirs.in_proj_weight is not None
    for block in model.blocks:
        joint = torch.cat([block.get_parameter(f"{name}.weight") for name in ("q_proj", "k_proj", "v_proj")])
        for own, other, bound in (
            (joint, theirs.in_proj_weight, math.sqrt(6 / (dim + 3 * dim))),
            (block.get_parameter("o_proj.weight"), theirs.out_proj.weight, 1 / math.sqrt(dim)),
        ):
            for weight in (own, other):
                assert 0.999 * bound < weight.abs().max().item() <= bound
                assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # uniform
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert not block.get_parameter(f"{name}.bias").any()


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.heads=3 does not divide model\.dim=32"):
        Decoder(Tokens(11, 4), 32, 1, 3, nn.Linear)
    assert Decoder(Tokens(11, 4), 30, 1, 2, nn.Linear)(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 1, 11), (
        "an odd head_dim works"
    )


def test_the_ternary_twin_has_ternary_layers_and_learns() -> None:
    data, losses = modular(p=7), []

    class Log(Callback):
        def on_step(self, state: State) -> None:
            losses.append(state.logged["train/loss"])

    torch.manual_seed(0)
    model = Decoder(data.shape, 32, 2, 2, partial(BitLinear, backend="ste"))
    assert set(bitlinear_layers(model)) == {f"blocks.{block}.{layer}" for block in range(2) for layer in LAYERS}
    before = {name: layer.weight.detach().clone() for name, layer in bitlinear_layers(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    trainer = Trainer(60, 18, log_every=1, device="cpu")
    trainer.fit(trainer.setup(model, optimizer, constant, last_token, data, [Log()], monitor="val/acc"))
    assert losses[-1] < 0.5 * losses[0]
    for name, layer in bitlinear_layers(model).items():
        assert not torch.equal(layer.weight, before[name]), f"{name} does not learn"


@pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
def test_the_last_position_of_a_block_equals_that_of_all_positions(linear: Any) -> None:
    """Also with quantized inputs: every position has its own scale."""
    x = torch.randn(7, 5, 32)
    for block in build(linear).blocks:
        torch.testing.assert_close(block(x, last=True), block(x, last=False)[:, -1:])
