import utils  # noqa: F401  where OpenCV does not load, this says what to do
