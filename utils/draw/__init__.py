"""Drawing of boxes on images, plots, and mosaics of mistakes. Computes no metrics."""
