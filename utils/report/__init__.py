"""The reports of `compare.py` in HTML and Markdown, with charts. Measures nothing itself."""
