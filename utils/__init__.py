"""Shared code of the models and scripts: arrays, images, labels, settings. Does not import `models` or scripts."""
