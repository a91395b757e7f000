"""Export to other formats: writers, inference engines, accuracy checks, quantization. No command line."""
