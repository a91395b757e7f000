"""The cases that `benchmark.py` times. No command line."""
