"""Stand in for the package when a program is run by its path: python benchmarks/NAME.py.

Python then searches this folder, not the repository root, so `import benchmarks` finds this file first.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
sys.path[0] = str(Path(__file__).resolve().parents[1])
