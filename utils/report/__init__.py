"""The HTML and Markdown reports of `compare.py`, with their charts. Does not measure anything."""
