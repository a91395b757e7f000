"""Detection heads, one file per head: how raw maps become boxes. No losses, no backbones."""
