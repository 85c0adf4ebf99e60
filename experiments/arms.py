"""Tasks and optimizers that several studies share: overrides of train.py, and the settings tuned for each."""

from experiments.study import FIRST_HIT, Arm
from research.contracts import contract

MODULAR = ("experiment=grokfast_modular", "callbacks.grokking.after=1")
# task -> size -> overrides of all its runs
TASKS = {
    "modular": {
        "quick": (*MODULAR, "data.p=47", "model.dim=64", "model.depth=1", "steps=1500"),
        "full": (*MODULAR, "steps=3000"),
    },
    "digits": {
        "quick": ("data=digits", "model.dim=64", "steps=300"),
        "full": ("data=digits", "model.dim=128", "steps=1000", "eval_every=50"),
    },
    "text": {
        "quick": ("data=text", "model.dim=64", "data.seq_len=128", "steps=250", "eval_every=125", "precision=fp32"),
        "full": (
            "data=text",
            "model.dim=128",
            "data.seq_len=128",
            "batch_size=16",
            "steps=1500",
            "eval_every=250",
            "precision=fp32",
        ),
    },
}
MODELS = {
    "modular": {"dense": "decoder", "ternary": "bitdecoder"},
    "digits": {"dense": "mlp", "ternary": "bitmlp"},
    "text": {"dense": "transformer", "ternary": "bitnet"},
}
SMALL = "optim.weight_decay=tag(log,interval(1e-3,1.0))"  # for optimizers designed to work without weight decay
RATE = ("lr=tag(log,interval(1e-3,1e-2))", "optim.weight_decay=tag(log,interval(0.1,3.0))")
GAIN = ("optim.lamb=tag(log,interval(0.25,4.0))",)
OPTIMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # name -> fixed overrides, tuned ones
    "adamw": (("optim=adamw",), RATE),
    "momentum": (("optim=momentum",), RATE),
    "grokfast": (("optim=grokfast",), (*RATE, *GAIN, "optim.alpha=choice(0.8,0.9,0.95,0.98)")),
    "grokfast_ma": (("optim=grokfast_ma",), (*RATE, *GAIN, "optim.window=choice(10,30,100)")),
    "grokadamw": (("optim=grokadamw",), (*RATE, *GAIN, "optim.adapt=tag(log,interval(0.01,1.0))")),
    "ademamix": (("optim=ademamix",), (*RATE, "optim.base.alpha=tag(log,interval(1.0,8.0))")),
    "orthograd": (("optim=orthograd",), (RATE[0], SMALL)),
    "muon": (("optim=muon",), ("lr=tag(log,interval(2e-3,3e-2))", RATE[1])),
    "stablemax": (("optim=adamw", "loss=stablemax"), (RATE[0], SMALL)),
}
SHORT = {"modular": {"quick": ("steps=1000",)}}  # for studies with many runs: good settings are done by then


@contract
def make_arm(task: str, size: str, kind: str, optim: str, trials: int, short: bool = False) -> Arm:
    """Return the arm of a dense or ternary network on a task, its optimizer tuned in so many random trials."""
    fixed, space = OPTIMS[optim]
    decays = ("optim.no_decay=[]",) if task == "modular" else ()  # grokking needs the embedding's norm to shrink
    model = (f"model={MODELS[task][kind]}", "schedule.warmup=10")
    more = SHORT.get(task, {}).get(size, ()) if short else ()
    overrides = (*TASKS[task][size], *model, *decays, *fixed, *more)
    return Arm(f"{kind}_{optim}", task, overrides, space, trials, search=FIRST_HIT if task == "modular" else ())
