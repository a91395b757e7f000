"""Machine and process: device, precision, distributed training, console, signals, downloads.
Does not depend on object detection."""
