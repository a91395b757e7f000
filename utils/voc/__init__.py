"""PASCAL VOC format: reading and converting it, and the default data set, which is drawn in it."""
