"""The parts of training: losses, optimizer, anchors, evolution, logs. The training loop itself is in train.py."""
