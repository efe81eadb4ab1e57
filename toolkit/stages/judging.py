"""What judges while a model thinks: a reward adapter over the same base, or a reward function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from toolkit.evaluation.graded import Key
from toolkit.inference.engine import Completion
from toolkit.inference.remembering import Remembering
from toolkit.inference.thinking.running import Judged
from toolkit.inference.thinking.steps import Problem
from toolkit.stages.examined import Examined
from toolkit.stages.requests import Request
from toolkit.stages.scored import AdapterScorer, Answer, Scorer

JUDGE = "judge"
"""What the reward adapter is called over the base of the model that thinks."""


class Asked(Protocol):
    """A question that is thought about."""

    @property
    def request(self) -> Request:
        """How the model is asked."""
        ...


class Judging:
    """Scores completions of one model as it thinks.

    Args:
        scorer: the reward.
        examined: the model.
        answer_of: a completion as rewards read it.
        known: scores of the exam's samples, by the question and what was written.
    """

    def __init__(
        self,
        scorer: Scorer,
        examined: Examined,
        answer_of: Callable[[Examined, Request, Mapping[str, Any]], Answer],
        known: Mapping[tuple[Key, tuple[int, ...]], float | None],
    ):
        self.scorer, self.examined, self.answer_of = scorer, examined, answer_of
        self.known = known
        self.identity = scorer.identity

    def over(
        self, engine: Remembering, problems: Sequence[Problem], asked: Sequence[Asked]
    ) -> Judged:
        """The judge of some questions.

        Args:
            engine: of the model that thinks, which the reward adapter is put on.
            problems: the questions.
            asked: how each was asked.
        """
        requests = {id(p): each.request for p, each in zip(problems, asked, strict=True)}

        def judge(pairs: Sequence[tuple[Problem, Completion]]) -> list[float | None]:
            keys = [
                ((*requests[id(problem)].key[:3], None), tuple(made.input_ids))
                for problem, made in pairs
            ]
            found: dict[int, float | None] = {
                place: self.known[key] for place, key in enumerate(keys) if key in self.known
            }
            missing = [place for place in range(len(pairs)) if place not in found]
            if missing:
                chosen = [pairs[place] for place in missing]
                found |= dict(zip(missing, self.anew(engine, chosen, requests), strict=True))
            return [found[place] for place in range(len(pairs))]

        return judge

    def anew(
        self,
        engine: Remembering,
        pairs: Sequence[tuple[Problem, Completion]],
        requests: Mapping[int, Request],
    ) -> list[float | None]:
        """The scores of completions that the exam has none of."""
        if isinstance(self.scorer, AdapterScorer):
            writer: Any = engine.engine
            if JUDGE not in getattr(writer.model, "peft_config", {}):
                writer.add_judge(JUDGE, self.scorer.place)
            rows = [[*problem.prompt.input_ids, *made.input_ids] for problem, made in pairs]
            return list(writer.scores(JUDGE, rows))
        answers = []
        for problem, made in pairs:
            line = {"text": made.text, "input_ids": made.input_ids, "stopped": made.stopped}
            answers.append(self.answer_of(self.examined, requests[id(problem)], line))
        places = {id(answer): place for place, answer in enumerate(answers)}
        found: list[float | None] = [None] * len(answers)
        for answer, score in self.scorer.score(answers, len(answers)):
            found[places[id(answer)]] = score
        return found
