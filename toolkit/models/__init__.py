"""Bases, tokenizers, chat templates and adapters: what is loaded, and what is trained of it."""
