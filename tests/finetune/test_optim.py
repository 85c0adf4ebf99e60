"""Every optimizer of conf/optim takes what learns on a frozen base, and moves nothing else."""

from typing import Any

import pytest
import torch
from fitting import DATA
from hydra import compose, initialize_config_dir

from research.load import instantiate
from research.losses import last_token
from research.models.transformer import Transformer
from research.nn.bitlinear import BitLinear
from research.nn.lowrank import add_gains, add_low_rank, let_norms_learn
from research.options.conf import CONF, list_groups


@pytest.mark.parametrize("kind", ["inside", "gains"])
@pytest.mark.parametrize("optim", sorted(list_groups()["optim"]))
def test_an_optimizer_moves_what_learns_alone(optim: str, kind: str) -> None:
    torch.manual_seed(0)
    model: Any = Transformer(DATA.shape, 16, 1, 2, BitLinear)
    _ = add_low_rank(model, 2, 4.0, ["*"], []) if kind == "inside" else add_gains(model)
    let_norms_learn(model)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", overrides=[f"optim={optim}", "lr=1e-2"]).optim
    optimizer = instantiate(node, model, key="optim")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = DATA.train[torch.arange(16)]
    for _ in range(3):
        last_token(model(x), y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all(), name
        assert torch.equal(p, before[name]) != p.requires_grad, name
