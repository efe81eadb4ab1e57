"""A graded completion: what every score of an exam is made of."""

from dataclasses import dataclass

Key = tuple[str, str, int, int | None]
"""Stage, task, question and sample."""


@dataclass(frozen=True)
class Graded:
    """One completion of an exam.

    Attributes:
        stage: who answered.
        task: the name of the task.
        question: its position in the task.
        sample: which of the samples; None is the greedy answer.
        text: what was said.
        stopped: whether it ended by itself, and was not cut off at the longest length.
        right: whether it gives the answer, however it ended.
        tokens: how many it has, the stop token included.
        said: the answer that the checker reads in it; None if it reads none.
    """

    stage: str
    task: str
    question: int
    sample: int | None
    text: str
    stopped: bool
    right: bool
    tokens: int
    said: str | None = None

    @property
    def key(self) -> Key:
        """What no other completion of the exam has."""
        return self.stage, self.task, self.question, self.sample
