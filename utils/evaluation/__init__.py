"""Evaluation: NMS, metrics, protocols and confidence intervals. Contains no networks and no drawing."""
