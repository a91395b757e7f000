"""Building blocks, one file per family, and their fusion for inference; no heads, no whole networks.
Of the rest of `models`, only `models.common` and `models.registry` may be imported here."""
