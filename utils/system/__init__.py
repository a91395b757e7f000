"""The machine and the process: device, precision, several processes, console, signals, downloads. Knows nothing of
detection.
"""
