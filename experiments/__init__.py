"""Studies. Run one from the repository root: python -m experiments.NAME.study --help."""
