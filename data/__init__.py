"""Task tables, preparation of raw downloads, loading and augmentation."""
