"""A run as a process among others and as files on a disk."""
