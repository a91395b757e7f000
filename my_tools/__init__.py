"""Command-line tools, one file per command; the parts of the larger ones are in folders of their own."""
