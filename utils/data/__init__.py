"""Image and label files, caching, augmentation and data loading. Models and drawing are in other packages."""
