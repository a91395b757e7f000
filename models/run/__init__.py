"""Parts of a training run: setup, state, resume. The training loop itself is in train.py."""
