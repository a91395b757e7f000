"""The PASCAL VOC format: reading, conversion, and the default dataset, which is drawn in it. No command line."""
