"""How long the command line takes to answer: --help and a wrong override, over `python -c "import hydra"`.

python -m benchmarks.start_up [--rounds 15]
"""

from functools import partial

from benchmarks import harness

BOUNDS = {"help/hydra": 2.5, "wrong/hydra": 2.5}
COMMANDS = {"hydra": ["-c", "import hydra"], "help": ["train.py", "--help"], "wrong": ["train.py", "trainer.step=5"]}


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_count("--rounds", 15)
    rounds = parser.parse_args().rounds
    arms = {name: harness.make_arm(partial(harness.run_python, *words, check=False)) for name, words in COMMANDS.items()}
    times = harness.run_interleaved(arms, rounds)
    labels = {name: f"python {' '.join(words)}" for name, words in COMMANDS.items()}
    harness.finish(harness.report("command", times, {"hydra": times["hydra"]}, "seconds", 36, labels), BOUNDS)


if __name__ == "__main__":
    main()
