"""Building blocks, one file per family, and their fusion for inference; no heads, no whole networks.
Of `models` only `models.common` and `models.registry` are imported here."""
