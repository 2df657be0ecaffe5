"""Prompts -> answers, captions -> pictures."""
