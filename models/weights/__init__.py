"""Checkpoints: reading, writing, foreign formats, transfer. The only package that calls torch.save and torch.load."""
