"""How long the command line takes to answer: --help and a wrong override, over `python -c "import hydra"`.

python -m benchmarks.start_up [--rounds 15]
"""

import statistics
import subprocess
import sys
from functools import partial

from benchmarks import harness

BOUNDS = {"help/hydra": 2.5, "wrong/hydra": 2.5}
COMMANDS = {"hydra": ["-c", "import hydra"], "help": ["train.py", "--help"], "wrong": ["train.py", "trainer.step=5"]}


def run_command(args: list[str]) -> None:
    subprocess.run([sys.executable, *args], cwd=harness.ROOT, capture_output=True, check=False)


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--rounds", type=harness.make_count_parser(1), default=15)
    args = parser.parse_args()
    arms = {name: harness.make_arm(partial(run_command, words)) for name, words in COMMANDS.items()}
    times = harness.run_interleaved(arms, args.rounds)
    table = harness.Table("command", "seconds", "over hydra", width=36)
    ratios = {}
    for name, words in COMMANDS.items():
        ratio = harness.compare(times[name], times["hydra"]).median
        table.add(f"python {' '.join(words)}", f"{statistics.median(times[name]):.2f}", f"{ratio:.2f}")
        if name != "hydra":
            ratios[f"{name}/hydra"] = ratio
    harness.finish(ratios, BOUNDS)


if __name__ == "__main__":
    main()
