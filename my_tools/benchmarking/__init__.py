"""The cases that `benchmark.py` times."""
