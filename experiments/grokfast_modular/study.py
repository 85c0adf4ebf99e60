"""Grokfast on the paper's task against four baselines: README.md has the result."""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.arms import RATE
from experiments.base import format_table
from experiments.results import Row, compare, count_trials, format_values, get_value, is_bound, select_rows
from experiments.study import FIRST_HIT, Arm, Study
from research.contracts import contract

HERE = Path(__file__).parent
BASE = ("experiment=grokfast_modular", "callbacks.grokking.after=1")
SIZES = {"quick": ("data.p=47", "model.dim=64", "model.depth=1"), "full": ("data.p=97",)}
LIMIT = {"quick": 3000, "full": 2000}
BASELINES = {"quick": (3000, 3000), "full": (60_000, 5000)}  # steps of the paper's own baseline and of the others
ONE = {"quick": "", "full": "1"}  # one seed for runs of an hour
EMA, MA = "optim=grokfast", "optim=grokfast_ma"
ADAM = ("optim.base._target_=torch.optim.Adam", "optim.no_decay=[]", "lr=1e-3")
L2 = "optim.weight_decay"
FILTER = ("optim.alpha=choice(0.8,0.9,0.95,0.98)", "optim.lamb=tag(log,interval(0.25,4.0))")
TRIALS = {"quick": 10, "full": 8}
OWN_SETTINGS = {"ema": ("same_decay", "times_three"), "ma": ("ma_decay", "times_six")}  # each filter's settings without it
CLAIMED = {"paper": 39_890, "ema": 910, "ma": 790}  # 2405.20233, and the authors' code
TITLES = {"full": "p = 97, the paper's size", "quick": "p = 47"}
TICKS = {"full": (300, 1_000, 3_000, 10_000, 30_000), "quick": (300, 500, 1_000, 2_000, 3_000)}
NAMES = {
    "paper": "Adam, no weight decay (the paper's baseline)",
    "same_decay": "Adam, L2 0.005 (the average's own weight decay)",
    "times_three": "the same, lr times 3 (1 + lamb)",
    "ma_decay": "Adam, L2 0.01 (the window's own weight decay)",
    "times_six": "the same, lr times 6 (1 + lamb)",
    "adamw": "AdamW, tuned",
    "ema": "Adam, L2 0.005, EMA 0.98, lamb 2 (the paper's)",
    "ma": "Adam, L2 0.01, window 100, lamb 5 (the paper's)",
    "grokfast": "AdamW and EMA, tuned",
}


@contract
def list_arms(size: str) -> list[Arm]:
    base = (*BASE, *SIZES[size], f"steps={LIMIT[size]}")
    paper, slow = ((*BASE, *SIZES[size], f"steps={steps}") for steps in BASELINES[size])
    return [
        Arm("paper", "modular", paper, seeds=ONE[size]),
        Arm("same_decay", "modular", (*slow, f"{L2}=0.005")),
        Arm("times_three", "modular", (*slow, f"{L2}=0.005", "lr=3e-3"), seeds=ONE[size]),
        Arm("ma_decay", "modular", (*slow, f"{L2}=0.01")),
        Arm("times_six", "modular", (*slow, f"{L2}=0.01", "lr=6e-3"), seeds=ONE[size]),
        Arm("adamw", "modular", (*base, "optim=adamw", "optim.no_decay=[]"), RATE, TRIALS[size], search=FIRST_HIT),
        Arm("ema", "modular", (*base, EMA, *ADAM, "optim.alpha=0.98", "optim.lamb=2", f"{L2}=0.005")),
        Arm("ma", "modular", (*base, MA, *ADAM, "optim.window=100", "optim.lamb=5", f"{L2}=0.01")),
        Arm("grokfast", "modular", (*base, EMA, "optim.no_decay=[]"), (*RATE, *FILTER), TRIALS[size], search=FIRST_HIT),
    ]


@contract
def make_table(rows: list[Row], size: str) -> str:
    head = ["arm", "95 % at step", "held from", "99 % at step", "train 99 %", "lowest after", "s to 95 %", "tuned with"]
    lines = []
    for arm, name in NAMES.items():
        runs = select_rows(rows, arm)
        if runs:
            lowest = ", ".join((row["lowest"] and f"{float(row['lowest']):.2f}") or "-" for row in runs)
            took = ", ".join((row["seconds_95"] and f"{float(row['seconds_95']):.0f}") or "-" for row in runs)
            tuned = f"{count_trials(rows, arm)} trials: {runs[0]['settings']}" if count_trials(rows, arm) else "-"
            cells = [format_values(runs, key) for key in ("val_95", "held_95", "val_99", "train_99")]
            lines.append([name, *cells, lowest, took, tuned])
    return format_table(head, lines) + "\n\n" + make_ratio_table(rows)


def make_ratio_table(rows: list[Row]) -> str:
    """Return a table: how many times less each arm took than those without a filter."""
    lines = []
    for fast in ("ema", "ma", "grokfast", "adamw"):
        for what, key in {"steps": "val_95", "steps until held": "held_95", "seconds": "seconds_95"}.items():
            slow = ("paper", *OWN_SETTINGS.get(fast, ("", "")), "adamw")
            cells = (
                "-" if arm in ("", fast) else compare(select_rows(rows, arm), select_rows(rows, fast), key) for arm in slow
            )
            lines.append([f"{NAMES[fast]}: {what}", *cells])
    return format_table(["times less than", "Adam", "Adam, its own L2", "that, lr times 1 + lamb", "AdamW, tuned"], lines)


@contract
def draw(rows: list[Row]) -> Figure:
    """Draw the steps to 95 % of each seed, a panel a size. Hollow: not within the run; a cross: the paper's number."""
    sizes = [size for size in TITLES if any(row["size"] == size for row in rows)]
    figure = Figure(figsize=(4 * len(sizes) + 2.5, 3.2), layout="constrained")
    for axis, size in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True):
        for position, arm in enumerate(NAMES):
            colour = "tab:orange" if arm in ("ema", "ma", "grokfast") else "tab:gray"
            for row in select_rows([row for row in rows if row["size"] == size], arm):
                shape, fill = (">", "none") if is_bound(row) else ("o", "full")
                axis.plot(get_value(row), position, shape, color=colour, fillstyle=fill, alpha=0.8)
            if size == "full" and arm in CLAIMED:
                axis.plot(CLAIMED[arm], position, "x", color="black")
        axis.set(xscale="log", xlabel="steps to 95 % of the held-back half", title=TITLES[size])
        axis.set_xticks(TICKS[size], [f"{tick:,}" for tick in TICKS[size]])
        axis.set_xticks([], minor=True)
        axis.set_yticks(range(len(NAMES)), [name.split(" (")[0] for name in NAMES.values()], fontsize=7)
        axis.grid(alpha=0.3)
    figure.axes[0].invert_yaxis()
    return figure


if __name__ == "__main__":
    Study(HERE, list_arms, {"quick": 3, "full": 3}, make_table, draw).main()
