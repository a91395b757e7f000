"""Blocks, networks, checkpoints, inference and export. Imports `utils`, no scripts and no tools."""
