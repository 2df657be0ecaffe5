"""Files, archives and a generated world -> images (3, H, W) in [-1, 1]; unreadable files are counted and named."""
