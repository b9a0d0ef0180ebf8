"""JPEG compressibility: a reward without weights, and the template for new ones."""
