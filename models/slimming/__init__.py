"""Replacing layers of a trained model by lighter ones that start from its weights. No command line."""
