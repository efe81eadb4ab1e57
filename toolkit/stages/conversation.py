"""A conversation with a model: what it is shown, what it answers, and what no longer fits."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from toolkit.data.control_tokens import check_spoken
from toolkit.data.template_render import Template
from toolkit.errors import DataError, RecipeError
from toolkit.inference.engine import Completion, Prompt, Sampling
from toolkit.inference.sampling import TransformersEngine
from toolkit.inference.thinking.adaptive import adaptive
from toolkit.inference.thinking.budget import Budget
from toolkit.inference.thinking.budget_forcing import budget_forcing
from toolkit.inference.thinking.running import think
from toolkit.inference.thinking.steps import Problem, Thinking, own_seeds
from toolkit.inference.writing import Writing
from toolkit.rewards.answer import ends_in_number, final_number, normalised
from toolkit.stages.requests import rendered

END_OF_THINKING = "</think>"
VOTES = 16
"""Samples of a vote at most."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a model said, and all that it depends on.

    Attributes:
        prompt: the messages that it was shown.
        text: what it said.
        seed: of the sampling.
        stopped: whether it ended by itself.
        tokens: what it cost.
        sampling: how its tokens were chosen.
        thinking: how many tokens it was given to think; 0 for none.
        note: how a vote went.
    """

    prompt: list[Message]
    text: str
    seed: int
    stopped: bool
    tokens: int
    sampling: Sampling
    thinking: int = 0
    note: str = ""

    def settings(self) -> dict[str, Any]:
        """What a row of feedback says of it beside the prompt, the text and the seed."""
        return {**asdict(self.sampling), "thinking": self.thinking, "stopped": self.stopped}


@dataclass
class Conversation:
    """Messages so far, and a model that answers them.

    Attributes:
        engine: with a tokenizer that has a chat template.
        sampling: how tokens are chosen.
        seed: of the whole; every answer has one of its own.
        say: is told one line where something does not fit.
        system: what the model is told before everything, if anything.
        thinking: how many tokens an answer may cost that is thought about; 0 for none.
        messages: of the user and the assistant.
        last: the newest answer.
        asked: how many answers there were.
    """

    engine: TransformersEngine
    sampling: Sampling
    seed: int
    say: Callable[[str], Any]
    system: str | None = None
    thinking: int = 0
    messages: list[Message] = field(default_factory=list)
    last: Answer | None = None
    asked: int = 0

    def __post_init__(self):
        self.template = Template(self.engine.tokenizer)
        if self.system is not None:
            self.instruct(self.system)

    def instruct(self, system: str) -> None:
        """Give the model another system message.

        Raises:
            DataError: if the chat template has none.
        """
        shown = [{"role": "system", "content": system}, {"role": "user", "content": "hello"}]
        self.ids(shown)
        self.system = system

    def forget(self) -> None:
        """Begin anew; the system message stays."""
        self.messages, self.last = [], None

    def answers(self, text: str) -> Generator[str, None, None]:
        """Have the user's words answered; what was said until it was stopped stays said.

        Args:
            text: of the user.

        Yields:
            The answer as it grows; whole, where it is thought about.

        Raises:
            DataError: if the words cannot be rendered, or are too many; they are not kept then.
        """
        question = {"role": "user", "content": text}
        prompt, input_ids, longest = self.fitting([*self.messages, question])
        seed = own_seeds(self.seed, self.asked)
        sampling = replace(self.sampling, max_completion_length=longest)
        empty = Answer(prompt, "", seed, False, 0, sampling, self.thinking)
        self.messages, self.last = [*self.messages, question], None
        self.asked += 1
        try:
            for so_far, piece in self._pieces(empty, input_ids):
                self.last = so_far
                yield piece
        finally:
            if self.last is None:  # stopped before the first word
                self.messages.pop()
            else:
                self.messages.append({"role": "assistant", "content": self.last.text})

    def fitting(self, messages: list[Message]) -> tuple[list[Message], list[int], int]:
        """What the model is shown: the newest of the messages that leave room for an answer.

        Args:
            messages: of the user and the assistant.

        Returns:
            The messages with the system message, their tokens, and those that an answer may have.

        Raises:
            DataError: if the last message alone leaves no room.
        """
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        positions, longest = self.engine.positions, self.sampling.max_completion_length
        dropped = 0
        while True:
            prompt = [*first, *messages[dropped:]]
            ids = self.ids(prompt)
            if not positions or len(ids) + longest <= positions or dropped + 1 >= len(messages):
                break
            dropped += 2  # a question and its answer
        room = positions - len(ids) if positions else longest
        if room < 1:
            raise DataError(
                f"{len(ids):,} tokens leave no room for an answer in the {positions:,} of the model; "
                "ask in fewer words"
            )
        if dropped:
            self.say(
                f"the first {dropped} messages no longer fit into the {positions:,} tokens of the "
                "model, which does not see them"
            )
        if room < longest:
            self.say(f"there is room for an answer of {room:,} tokens only")
        return prompt, ids, min(room, longest)

    def ids(self, messages: list[Message]) -> list[int]:
        """The tokens that an answer follows.

        Raises:
            DataError: if the template refuses them, or somebody spells out a control token.
        """
        check_spoken(self.engine.tokenizer, messages)
        return rendered(messages, None, self.engine.tokenizer, self.template)

    def _pieces(self, answer: Answer, input_ids: list[int]) -> Iterator[tuple[Answer, str]]:
        """The answer so far, and what is new of it."""
        prompt = Prompt(input_ids, answer.seed)
        if self.thinking:
            problem = Problem(prompt, answer.sampling, said, self.engine.tokenizer)
            (thought,) = think(self.engine, [(problem, self.way(problem))])
            found = replace(
                answer, text=thought.text, stopped=thought.stopped, tokens=thought.tokens,
                note=vote_of(thought.votes, thought.said, len(thought.completions)),
            )  # fmt: skip
            yield found, thought.text
            return
        writing = Writing(self.engine, [prompt], answer.sampling)
        while writing.rows:
            (news,) = writing.advance()
            done: Completion | None = news.completion
            answer = replace(
                answer,
                text=answer.text + news.text if done is None else done.text,
                stopped=done is not None and done.stopped,
                tokens=news.tokens,
            )
            yield answer, news.text

    def way(self, problem: Problem) -> Thinking:
        """How the next answer is thought about; see `deliberates`."""
        if self.deliberates:
            return budget_forcing(problem, Budget(), end=END_OF_THINKING, maximum=self.thinking)
        return adaptive(problem, Budget(tokens=self.thinking), n=VOTES)

    @property
    def deliberates(self) -> bool:
        """Whether the model was made to think before it answers; else its samples vote."""
        tokenizer: Any = self.engine.tokenizer
        if END_OF_THINKING not in str(tokenizer.chat_template):
            return False
        ids = tokenizer(END_OF_THINKING, add_special_tokens=False).input_ids
        return END_OF_THINKING in tokenizer.decode(ids, skip_special_tokens=True)

    def think(self, tokens: int) -> str:
        """Have answers thought about from now on, with so many tokens each; 0 for no more.

        Returns:
            One line that says how.

        Raises:
            RecipeError: if thinking could change nothing.
        """
        if not tokens:
            self.thinking = 0
            return "answers are no longer thought about"
        if not self.deliberates and self.sampling.temperature == 0:
            raise RecipeError(
                "at temperature 0 all samples are one, so there is nothing to vote on"
            )
        self.thinking = tokens
        if self.deliberates:
            return f"it thinks for at most {tokens:,} tokens, then answers"
        return f"up to {VOTES} samples of {tokens:,} tokens in all vote on the answer"


def said(text: str) -> str | None:
    """What a sample votes for: the number it ends in, else all of its words."""
    number = final_number(text) if ends_in_number(text) else None
    return (normalised(text) or None) if number is None else str(number)


def vote_of(votes: Any, winner: str | None, samples: int) -> str:
    """How a vote went, in a few words; nothing where there was none."""
    if not votes:
        return ""
    return f"{votes.get(winner or '', 0):.0f} of {samples} samples say so"
