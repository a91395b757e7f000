"""Export to other formats: writers, engines that run the files, checks, quantization. No command line."""
