"""From files on disk to batches: labels, records, conversion, augmentation, loading."""
