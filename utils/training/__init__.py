"""Parts of training: loss, optimizer, anchors, evolution, logs. The training loop itself is in train.py."""
