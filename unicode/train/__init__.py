"""Anything to better weights: schedules, the order of the data, and the loops that train tokenizers."""
