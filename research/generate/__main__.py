"""python -m research.generate RUN --prompt TEXT     continue a text with a trained run, its ternary weights packed

For data other than text, the prompt and the output are token ids, as "3 47 5 48".
"""

import argparse
import sys
from collections.abc import Sequence

from research import signals
from research.cli import Parser, protect_streams, run_command
from research.contracts import contract
from research.tracking.find import check_run


@contract
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 1 or 2 with one message on stderr."""
    command = Parser("python -m research.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("run", metavar="RUN", help="a run folder, one of its checkpoints/step-*, or an MLflow run id")
    command.add_argument("--prompt", "-p", required=True, metavar="TEXT",
                         help="the start; of a long one the model sees as many tokens as it has positions")  # fmt: skip
    command.add_argument("--tokens", "--max-new-tokens", type=int, default=200, metavar="N",
                         help="how many tokens to add at most; text ends where its document does (200)")  # fmt: skip
    command.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: always the likeliest token (0.8)")
    command.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens (0: from all)")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P",
                         help="draw from the fewest tokens that have a share P of the probability (1: from all)")  # fmt: skip
    command.add_argument("--stop", action="append", default=[], metavar="TEXT",
                         help=r"end before this text, where \n and \t are a line's end and a tab; may be repeated")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the draws (0)")
    command.add_argument("--packed", action=argparse.BooleanOptionalAction, default=True,
                         help="ternary weights at two bits; --no-packed: the model as it was trained")  # fmt: skip
    args = command.parse_args(attach_prompt(sys.argv[1:] if arguments is None else arguments))
    prompt = args.prompt or ("--" if args.prompt == [] else "")  # argparse takes --prompt=-- for no text at all
    args.stop = [text.replace(r"\n", "\n").replace(r"\t", "\t") for text in args.stop]
    if "" in args.stop:
        command.error('--stop "": give a text that is not empty')
    if not 1 <= args.tokens <= sys.maxsize:
        command.error(f"--tokens {args.tokens}: give at {'least 1' if args.tokens < 1 else f'most {sys.maxsize}'}")

    def work(watch: signals.Watch) -> None:
        check_run(args.run)
        with watch.raise_immediately():
            # torch comes with these: a wrong option is answered before
            from research.generate.sampling import Sampler
            from research.generate.stream import generate

            sampler = Sampler(args.temperature, args.top_k, args.top_p, args.seed)
            generate(args.run, prompt, args.tokens, sampler, args.packed, args.stop)

    return run_command(work)


def attach_prompt(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each --prompt, --pro or -p and its text as one word: argparse takes -x for an option."""
    words, rest = list[str](), iter(arguments)
    for word in rest:
        is_prompt = word == "-p" or (word.startswith("--pr") and "--prompt".startswith(word))
        text = next(rest, None) if is_prompt else None
        words.append(word if text is None else f"--prompt={text}")
    return words


if __name__ == "__main__":
    protect_streams(prints_result=True)
    sys.exit(main())
