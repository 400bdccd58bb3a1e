"""The run directory: its layout, the one writer, the one reader, the cache of scores, and fsck."""
