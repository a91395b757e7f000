"""The models and experiments that `compare.py` measures."""
