"""The language model's side: its embedding table, and the small model that stands in for a large one by default."""
