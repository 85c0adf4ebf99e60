"""The Power of Ten (Holzmann, IEEE Computer 39(6), 2006) read for Python: ten rules over any tree of Python files.

It imports nothing of this package and no library, and never imports what it reads. docs/power-of-ten.md has the reading of
each rule.
"""
