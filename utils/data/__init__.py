"""Image and label files, caching, augmentation and data loading. Contains no models and no drawing."""
