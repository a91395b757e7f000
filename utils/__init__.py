"""What models and scripts are built on: arrays, images, labels, settings. Imports no `models`, no scripts."""
