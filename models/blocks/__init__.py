"""Building blocks, one file per family, and how they are fused for inference. Imports `models.common` and
`models.registry`, nothing else of `models`; no heads, no whole networks.
"""
