"""Checkpoints: reading, writing, foreign formats, transfer. The only room that calls torch.save and torch.load."""
