"""python -m research.report RUN_OR_SWEEP: write the report of a sweep again, or of a run or a sweep as one page of HTML."""

import argparse
from pathlib import Path

from research.cli import Parser, protect_streams
from research.tracking.find import check_report


def main() -> None:
    """Run the command line. Exit with 2 where there is no such run or sweep, with 1 where a file cannot be written."""
    parser = Parser(prog="python -m research.report", description="Write the report of a sweep again, or a page of HTML.")
    help_text = "the folder of a sweep, or with --html of a run; or its id in MLflow"
    parser.add_argument("source", metavar="RUN_OR_SWEEP", help=help_text)
    parser.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help="draw the pictures")
    parser.add_argument("--storage", metavar="URL", default="", help="hydra.sweeper.storage of a sweep that has set it")
    page = "write one page of HTML that needs no other file, by default report.html in the folder, and change nothing else"
    parser.add_argument("--html", metavar="FILE", nargs="?", const="", help=page)
    args = parser.parse_args()
    try:
        check_report(args.source, args.html is not None, args.storage)
        from research.report.report import rebuild_report, write_page  # heavy: neither --help nor a wrong source needs it

        if args.html is not None:
            print(f"{'report':<16} {write_page(args.source, Path(args.html) if args.html else None, args.plots, args.storage)}")
            return
        folder = rebuild_report(args.source, args.plots, args.storage)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.exit(1, f"error: {args.html or args.source}: {error}\n")
    print(f"{'report':<16} {folder / 'results.md'}")


if __name__ == "__main__":
    protect_streams()
    main()
