"""Command-line tools, one file per command. The parts of larger tools are in their own folders."""
