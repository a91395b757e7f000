"""Drawing: boxes on images, plots, pictures of mistakes. Measures nothing."""
