"""python -m research.report SWEEP: make the report of a sweep again."""

import argparse
import sys

from research.report.report import rebuild_report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.report", description="Make the report of a sweep again.")
    parser.add_argument("sweep", metavar="SWEEP", help="the sweep's folder, or the id of its parent run in MLflow")
    parser.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help="draw the pictures")
    asked = parser.parse_args()
    try:
        print(f"{'report':<16} {rebuild_report(asked.sweep, asked.plots) / 'results.md'}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
