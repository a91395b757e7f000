"""From image and label files to batches: reading, caching, augmentation, loading. No networks, no drawing."""
