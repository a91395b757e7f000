"""Building blocks, one file per family, and their fusion for inference.

The only other modules of `models` that these files import are `models.common` and `models.registry`. No heads, no whole
networks.
"""
