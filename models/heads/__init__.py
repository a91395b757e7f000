"""Detection heads, one file per head; they decode raw maps into boxes. No losses, no backbones."""
