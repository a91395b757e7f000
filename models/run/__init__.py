"""What a training run is made of: setup, state, resume. The training loop itself is in train.py."""
