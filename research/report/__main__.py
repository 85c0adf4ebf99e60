"""python -m research.report SWEEP: write the report of a sweep again."""

import argparse

from research.cli import Parser, protect_streams


def main() -> None:
    """Run the command line. Exit with 2 where there is no such sweep."""
    parser = Parser(prog="python -m research.report", description="Write the report of a sweep again.")
    parser.add_argument("sweep", metavar="SWEEP", help="the sweep's folder, or the id of its parent run in MLflow")
    parser.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help="draw the pictures")
    parser.add_argument("--storage", metavar="URL", default="", help="hydra.sweeper.storage of a sweep that has set it")
    args = parser.parse_args()
    from research.report.report import rebuild_report  # heavy: --help does not need it

    try:
        folder = rebuild_report(args.sweep, args.plots, args.storage)
    except ValueError as error:
        parser.error(str(error))
    print(f"{'report':<16} {folder / 'results.md'}")


if __name__ == "__main__":
    protect_streams()
    main()
