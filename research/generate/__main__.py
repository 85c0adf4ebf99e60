"""python -m research.generate RUN --prompt TEXT     go on with a text from what a run has learnt, its ternary weights packed

Of data other than text the prompt, and what comes, are the numbers of symbols, as "3 47 5 48".
"""

import argparse
import sys
from collections.abc import Sequence

from research import signals
from research.cli import Parser, print_message, run_command


def build_parser() -> Parser:
    command = Parser("python -m research.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("run", metavar="RUN", help="a run folder, one of its checkpoints/step-*, or an MLflow run id")
    command.add_argument("--prompt", required=True, metavar="TEXT",
                         help="to begin with; the model sees as much of its end as it was built for")  # fmt: skip
    command.add_argument("--tokens", type=int, default=200, metavar="N", help="how many symbols to add (200)")
    command.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: always the likeliest symbol (0.8)")
    command.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest symbols (0: from all)")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn (0)")
    command.add_argument("--packed", action=argparse.BooleanOptionalAction, default=True,
                         help="ternary weights at two bits; else the model as it was trained")  # fmt: skip
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 with one message on stderr."""
    given = build_parser().parse_args(arguments)

    def work(watch: signals.Watch) -> None:
        with watch.raise_immediately():
            from research.generate.stream import Sampler, generate  # torch comes with them

            if given.tokens < 1:
                raise ValueError(f"--tokens {given.tokens}: give at least 1")
            sampler = Sampler(given.temperature, given.top_k, given.seed)
            if told := generate(given.run, given.prompt, given.tokens, sampler, given.packed):
                print_message(told)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
