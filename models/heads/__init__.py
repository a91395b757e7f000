"""Detection heads, one file per head; they decode raw feature maps into boxes. No losses, no backbones."""
