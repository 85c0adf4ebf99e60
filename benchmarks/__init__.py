"""Measurements side by side with peers. Run one from the repository root: python -m benchmarks.NAME --help."""
