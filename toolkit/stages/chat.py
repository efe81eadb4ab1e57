"""`toolkit chat`: talk with a finished run in the terminal, and say which answers were good."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from toolkit.artifacts.feedback import FEEDBACK, append_feedback, append_line
from toolkit.artifacts.inputs import model_identity
from toolkit.artifacts.lineage import RECIPE
from toolkit.errors import Interrupted, RecipeError, ToolkitError, UsageError
from toolkit.inference.sampling import TransformersEngine
from toolkit.stages.chat_screen import Screen
from toolkit.stages.conversation import Answer, Conversation
from toolkit.stages.generate import policy_of, writer
from toolkit.stages.requests import sampled

HELP = {
    "/system TEXT": "what the model is told before everything; without TEXT: what it is",
    "/think N": "up to N tokens for an answer: its samples vote, or, where the",
    "": "chat template has </think>, it thinks so long; 0 ends it",
    "/good": "the last answer was good; kept for training",
    "/bad [BETTER]": "it was not; BETTER is what it should have been",
    "/reset": "forget the conversation; the system message stays",
    "/save FILE": "append the conversation to FILE.jsonl, for stage sft",
    "/help": "this",
    "/quit": "end, as Ctrl-D; Ctrl-C stops an answer",
    "//TEXT": "say /TEXT",
}


def chat(
    run: str,
    words: Sequence[str] = (),
    *,
    stage: str | None = None,
    system: str | None = None,
    feedback: str | None = None,
) -> int:
    """Talk with a model until the input ends.

    Args:
        run: the folder of a run, of a stage or of a model, or a Hub id.
        words: flags of stage rank, such as `--temperature 0.7`.
        stage: which stage of a run answers; by default the last that can.
        system: what the model is told before everything.
        feedback: the file of what the user thinks of answers; by default feedback.jsonl in the
            run's folder, or here for a model of the Hub.

    Returns:
        The exit code.

    Raises:
        RecipeError: if there is no such model, it has no chat template, or a flag is wrong.
        DataError: if the chat template has no system message, and one is given.
    """
    screen = Screen()
    place = writer(run, stage, screen.say)
    examined, recipe = policy_of(place, ["--num_generations", "1", *words])
    tokenizer = examined.load_tokenizer()
    if not tokenizer.chat_template:
        raise RecipeError(
            f"{place}: it has no chat template, so there is no talking with it; name what was "
            "trained on chats, or have it go on with a text: toolkit generate … --prompt TEXT"
        )
    engine = TransformersEngine(examined.load_model(), tokenizer, batch_size=16)
    talk = Conversation(engine, sampled(recipe), recipe["seed"], screen.say, system)
    path = Path(feedback).expanduser() if feedback else feedback_path(run, place)
    Chat(screen, talk, place, path).go_on()
    return 0


def feedback_path(run: str, place: str) -> Path:
    """Where thumbs are kept: in the folder of the run, beside its recipe."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return Path(FEEDBACK)
    for each in (Path(run).expanduser(), folder.parent):
        if (each / RECIPE).is_file():
            return each / FEEDBACK
    return folder / FEEDBACK


class Chat:
    """A person and a model at one screen.

    Args:
        screen: reads and shows.
        talk: the conversation.
        place: the folder or Hub id of who answers.
        feedback: the file of thumbs.
    """

    def __init__(self, screen: Screen, talk: Conversation, place: str, feedback: Path):
        self.screen, self.talk, self.place, self.feedback = screen, talk, place, feedback
        self.digest: str | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self.system, "/think": self.think, "/good": self.good, "/bad": self.bad,
            "/reset": self.reset, "/save": self.save, "/help": self.help,
        }  # fmt: skip

    def go_on(self) -> None:
        """Take lines until they end."""
        if self.screen.is_person:
            self.screen.say(f"{self.place} answers; /help says what there is, Ctrl-D ends it")
        while True:
            try:
                line = self.screen.read()
            except UnicodeDecodeError:
                self.screen.say("that line is not UTF-8")
                continue
            except Interrupted:
                raise
            except KeyboardInterrupt:
                self.screen.end("Ctrl-D or /quit ends the chat")
                continue
            if line is None or line.strip() == "/quit":
                return
            if line.strip():
                self.take(line.strip())

    def take(self, line: str) -> None:
        """Carry out a command, or have the line answered; what is wrong is said, and the chat goes on."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line.partition(" ")
                if name not in self.commands:
                    raise UsageError(f"there is no {name}; /help says what there is")
                self.commands[name](rest.strip())
            else:
                self.answer(line.removeprefix("/") if line.startswith("//") else line)
        except ToolkitError as error:
            self.screen.say(str(error))

    def answer(self, text: str) -> None:
        """Show the answer as it grows; Ctrl-C stops it."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("that line is not UTF-8") from error
        pieces = self.talk.answers(text)
        try:
            with closing(pieces):
                if self.talk.thinking:
                    with self.screen.waiting(f"thinking, {self.talk.thinking:,} tokens at most"):
                        first = next(pieces, "")
                    self.screen.show(first)
                for piece in pieces:
                    self.screen.show(piece)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            kept = "; what it said stays" if self.talk.last else ", and your question is forgotten"
            self.screen.end(f"stopped{kept}")
            return
        self.screen.end(remark(self.talk.last))

    def system(self, text: str) -> None:
        """Set or show the system message."""
        if text:
            self.talk.instruct(text)
        self.screen.say(self.talk.system or "there is no system message")

    def think(self, number: str) -> None:
        """Set how many tokens an answer may cost."""
        if not number.isdecimal() or len(number) > 9:
            raise UsageError("expected /think N, a number of tokens; 0 for none")
        self.screen.say(self.talk.think(int(number)))

    def good(self, rest: str) -> None:
        """Keep that the last answer was good."""
        if rest:
            raise UsageError("/good takes nothing; a better answer goes with /bad")
        self.judge(label=True, better=None)

    def bad(self, better: str) -> None:
        """Keep that the last answer was bad, and what would have been better."""
        self.judge(label=False, better=better or None)

    def judge(self, *, label: bool, better: str | None) -> None:
        """Append a row of feedback."""
        answer = self.talk.last
        if answer is None:
            raise UsageError("there is no answer to judge yet")
        self.digest = self.digest or model_identity(self.place)
        append_feedback(
            self.feedback, prompt=answer.prompt, completion=answer.text, label=label, better=better,
            adapter_digest=self.digest, seed=answer.seed, **answer.settings(),
        )  # fmt: skip
        self.screen.say(f"kept in {self.feedback}")

    def reset(self, rest: str) -> None:
        """Forget the conversation."""
        self.talk.forget()
        self.screen.say("forgotten; we begin anew")

    def save(self, name: str) -> None:
        """Append the conversation to a file."""
        if not name.endswith(".jsonl"):
            raise UsageError("expected /save FILE.jsonl, to which the conversation is appended")
        if not self.talk.messages:
            raise UsageError("there is nothing to save yet")
        system = self.talk.system
        first = [] if system is None else [{"role": "system", "content": system}]
        path = Path(name).expanduser()
        try:
            append_line(
                path, json.dumps({"messages": first + self.talk.messages}, ensure_ascii=False)
            )
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        self.screen.say(f"appended to {path}")

    def help(self, rest: str) -> None:
        """Say what there is."""
        self.screen.table(HELP)


def remark(answer: Answer | None) -> str:
    """What there is to say below an answer."""
    if answer is None:
        return ""
    cut = "" if answer.stopped else f"cut off at {answer.sampling.max_completion_length:,} tokens"
    empty = "" if answer.text.strip() else "it said nothing"
    spent = f"{answer.tokens:,} tokens" if answer.thinking else ""
    return " · ".join(filter(None, [empty, answer.note, spent, cut]))
