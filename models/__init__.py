"""Blocks, networks, checkpoints, inference and export. Imports `utils`, but no scripts and no tools."""
