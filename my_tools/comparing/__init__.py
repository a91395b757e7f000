"""The models and experiments that `compare.py` measures. No command line."""
