"""Weights that are spread over two processes, and their averages, without Hydra."""

import os
from pathlib import Path

from program import run_ranks

PROGRAM = """
import sys, torch
from functools import partial
from pathlib import Path
from research.training import sharding as shards, snapshot
from research.data.modular import modular
from research.callbacks.checkpoint import Checkpoint
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim import grokfast
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.training.trainer import Trainer

def fit(steps, folder, ema=None, build=from_base, seed=None, **more):
    trainer = Trainer(steps, 8, device="cpu", parallel="fsdp", ema=ema, eval_every=100)
    torch.manual_seed(steps if seed is None else seed)
    model = trainer.to_device(Transformer(data.shape, 16, 1, 2, torch.nn.Linear))
    optimizer = build(model, partial(torch.optim.AdamW), lr=1e-2)
    return trainer.fit(trainer.setup(model, optimizer, constant, last_token, data, [Checkpoint()], folder=folder, **more))

def same(a, b):
    return all(torch.equal(shards.full_tensor(x), shards.full_tensor(y)) for x, y in zip(a, b, strict=True))

data, root = modular(p=11), Path(sys.argv[1])
with_average = fit(6, root / "a", ema=0.5)
averages = [average.clone() for average in with_average.average.averages.values()]
trainer = Trainer(1, 8, device="cpu", parallel="fsdp", eval_every=100)
model = trainer.to_device(Transformer(data.shape, 16, 1, 2, torch.nn.Linear))
state = trainer.setup(model, from_base(model, torch.optim.AdamW, lr=1e-2), constant, last_token, data)
snapshot.initialize_from(state, root / "a")
assert same(model.parameters(), averages), "a fresh run begins at the averages"
fit(6, root / "c")
later = fit(7, root / "c", ema=0.9, resume=root / "c")
assert later.first_step == 6 and later.average, "averages begin at the weights where there are none"

late, early = (partial(grokfast.ema, **{moment: 3}) for moment in ("start_when", "stop_when"))
for name, build in {"late": late, "early": early, "window": partial(grokfast.ma, window=4)}.items():
    whole = fit(9, root / "whole" / name, build=build, seed=0)
    fit(5, root / name, build=build, seed=0)
    again = fit(9, root / name, build=build, seed=1, resume=root / name)
    assert same(whole.model.parameters(), again.model.parameters()), name
    kept = {part for state in again.optimizer.state.values() for part in state if part.startswith("grokfast")}
    assert kept == {"late": {"grokfast_ema"}, "early": set()}.get(name, {"grokfast_ring", "grokfast_sum", "grokfast_seen"})
print("all held")
"""


def test_averages_and_filters_of_sharded_weights(tmp_path: Path) -> None:
    """A filter goes on to the same bits, also where it keeps more or less than when it began."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for done in run_ranks([str(program), str(tmp_path / "runs")], tmp_path, dict(os.environ)):
        assert "all held" in done.stdout, done.stderr[-3000:]
