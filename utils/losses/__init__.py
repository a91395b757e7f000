"""Losses: which predictions learn which labels, and how predictions and labels are compared. No networks."""
