"""Machine and process: device, precision, distributed training, console, signals, downloads.
Nothing here depends on object detection."""
