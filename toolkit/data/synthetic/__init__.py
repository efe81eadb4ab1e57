"""A small invented world for the demo: documents, chats, problems, exams and a labeller."""

from pathlib import Path

DEMO_BASE = Path(__file__).parents[1] / "demo_base"
"""A base checkpoint that was trained on the world's documents and on nothing else."""
