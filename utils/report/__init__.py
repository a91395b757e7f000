"""The reports of `compare.py`: html, markdown, charts. Measures nothing."""
