"""Completions: batched, each the same in whatever batch it is made."""
