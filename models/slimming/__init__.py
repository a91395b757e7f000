"""Replace layers of a trained model with lighter ones, initialized from its weights. No command line."""
