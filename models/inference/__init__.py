"""Running a model on images: checkpoints and exported files behind one interface, the hub API. No training."""
