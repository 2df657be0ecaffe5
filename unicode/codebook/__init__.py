"""The idea of the project: vectors in, rows of one table out, and the table may be the language model's own."""
