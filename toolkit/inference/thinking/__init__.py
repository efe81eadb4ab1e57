"""Test-time compute: more tokens for a better answer, each way a small function over an engine.

A way of thinking is a generator: it yields what it wants written or judged, is sent what came of
it, and returns a `Thought`. It holds no model, so `think` takes many questions through one engine
side by side, `replay` takes one through completions that are there already, and a test needs neither.
"""
