"""Codes <-> vocabulary ids: their order, their text form and their files."""
