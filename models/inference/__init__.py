"""Inference: one interface for checkpoints and exported models, and the torch.hub API. No training."""
