"""The loop: everything between a configuration and a checkpoint that must not be wrong silently."""
