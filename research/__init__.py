"""Grokbit: ternary networks and accelerated generalisation. Start reading at `research/run.py`."""
