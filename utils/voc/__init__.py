"""Reading and converting the PASCAL VOC format, and drawing the default dataset in that format."""
