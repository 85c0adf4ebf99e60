"""A campaign of faults. Run it from the repository root: python -m benchmarks.faults --help."""
