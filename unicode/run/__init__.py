"""The commands: one per file; each reads its arguments, builds, calls and reports."""
