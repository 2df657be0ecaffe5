"""Files, archives and a generated world -> pictures (3, H, W) in [-1, 1], with what could not be read counted and named."""
