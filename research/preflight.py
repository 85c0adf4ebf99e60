from contextlib import contextmanager
def check(a): return a
@contextmanager
def explained(): yield
