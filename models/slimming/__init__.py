"""Replacement of layers of a trained model by lighter ones, initialized from its weights. No command line."""
