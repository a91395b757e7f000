"""Options, flags and yaml files, read as data and validated. Loads without torch."""
