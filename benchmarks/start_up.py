"""How long the command line takes to answer: --help and a wrong override, over `python -c "import hydra"`.

python -m benchmarks.start_up [--rounds 15]
"""

from functools import partial

from benchmarks import harness
from research.contracts import contract

BOUNDS = {"help/hydra": 0.5, "wrong/hydra": 2.5}
COMMANDS = {"hydra": ["-c", "import hydra"], "help": ["train.py", "--help"], "wrong": ["train.py", "trainer.step=5"]}


@contract
def main(rounds: int) -> harness.Results:
    arms = {name: harness.make_arm(partial(harness.run_python, *words, check=False)) for name, words in COMMANDS.items()}
    times = harness.run_interleaved(arms, rounds)
    labels = {name: f"python {' '.join(words)}" for name, words in COMMANDS.items()}
    return harness.report("command", times, {"hydra": times["hydra"]}, "seconds", 36, labels)


if __name__ == "__main__":
    harness.run(main, __doc__, BOUNDS, rounds=15)
