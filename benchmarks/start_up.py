"""How long the command line takes to answer: --help and a wrong override, over `python -c "import hydra"`.

python benchmarks/start_up.py [--rounds 15]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = {"help/hydra": 2.5, "wrong/hydra": 2.5}
COMMANDS = {"hydra": ["-c", "import hydra"], "help": ["train.py", "--help"], "wrong": ["train.py", "trainer.step=5"]}


def measure_seconds(name: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *COMMANDS[name]], cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rounds = [{name: measure_seconds(name) for name in COMMANDS} for _ in range(args.rounds + 1)][
        1:
    ]  # the first fills the caches
    ratios = {}
    for name, words in COMMANDS.items():
        ratio = statistics.median(each[name] / each["hydra"] for each in rounds)
        print(f"{statistics.median(each[name] for each in rounds):6.2f} s  {ratio:5.2f}  python {' '.join(words)}")
        if name != "hydra":
            ratios[f"{name}/hydra"] = round(ratio, 3)
    print(json.dumps(ratios | {"bounds": BOUNDS}))


if __name__ == "__main__":
    main()
