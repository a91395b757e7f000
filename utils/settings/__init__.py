"""Options, flags and yaml files: parsing and validation. Does not import torch."""
