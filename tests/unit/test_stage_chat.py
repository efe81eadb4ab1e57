"""`toolkit chat`: streamed answers, a conversation that fits, thumbs that can be trained on."""

import io
import json

import pytest

from tests import served, tiny
from toolkit import cli
from toolkit.artifacts.feedback import append_feedback, append_line
from toolkit.artifacts.inputs import model_identity
from toolkit.data.sources import load_rows
from toolkit.errors import DataError, Interrupted, RecipeError
from toolkit.inference.engine import Sampling
from toolkit.inference.sampling import TransformersEngine
from toolkit.inference.writing import Writing
from toolkit.models.load import load
from toolkit.recipe import recipe_from_flags
from toolkit.stages import chat as module
from toolkit.stages.chat_screen import harmless
from toolkit.stages.conversation import Conversation, said

SHORT = ["--max_completion_length", "12"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return served.save_run(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def engine(run):
    return TransformersEngine(*load(run / "sft"))


@pytest.fixture
def told():
    return []


@pytest.fixture
def talk(engine, told):
    return Conversation(engine, Sampling(12), 7, told.append)


def talked(run, lines, monkeypatch, capsys, words=()):
    """What a program that pipes lines reads: the answers, and the notes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert cli.main(["chat", str(run), *SHORT, *words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_lines_are_answered_and_thumbs_are_kept(run, monkeypatch, capsys):
    lines = ["one", "/good", "two", "/bad better words", "/bad", "/quit", "never"]
    out, err = talked(run, lines, monkeypatch, capsys, ["--system", "be kind"])
    rows = [json.loads(line) for line in (run / "feedback.jsonl").read_text().splitlines()]
    system = {"role": "system", "content": "be kind"}
    first = [system, {"role": "user", "content": "one"}]
    assert rows[0]["prompt"] == first
    answer = {"role": "assistant", "content": rows[0]["completion"]}
    assert rows[1]["prompt"] == [*first, answer, {"role": "user", "content": "two"}]
    assert [row["label"] for row in rows] == [True, False, False]
    assert [row.get("better") for row in rows] == [None, "better words", None]
    assert "better" not in rows[0]
    assert rows[0]["seed"] != rows[1]["seed"] == rows[2]["seed"]
    assert {row["adapter_digest"] for row in rows} == {model_identity(str(run / "ppo"))}
    assert rows[0]["temperature"] == 1.0
    assert rows[0]["stopped"] is False
    assert out == "".join(f"{harmless(row['completion'])}\n" for row in rows[:2])
    assert err.count("kept in") == 3
    assert "ppo answers, the last of" in err
    assert (run / "feedback.jsonl").stat().st_mode & 0o077 == 0
    again, _ = talked(run, ["one"], monkeypatch, capsys, ["--system", "be kind"])
    assert out.startswith(again), "the same seed says the same"


def test_commands_that_are_wrong_are_told_and_the_chat_goes_on(run, tmp_path, monkeypatch, capsys):
    saved = str(tmp_path / "talk.jsonl")
    lines = [
        "/good", "/nothing", "/think many", "/save talk.txt", f"/save {saved}", "//slash", "/reset",
        "/system obey", "next", f"/save {saved}", "/help", "/save /nowhere/at/all.jsonl",
        "<|endoftext|>",
    ]  # fmt: skip
    _, err = talked(run, lines, monkeypatch, capsys)
    said = " ".join(err.split())
    for part in (
        "there is no answer to judge yet", "there is no /nothing", "expected /think N",
        "expected /save FILE.jsonl", "there is nothing to save yet", "we begin anew", "obey",
        "appended to", "/bad [BETTER]", "control token",
    ):  # fmt: skip
        assert part in said, part
    (row,) = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [each["content"] for each in row["messages"]][:2] == ["obey", "next"]
    (recipe,) = recipe_from_flags(
        "sft", ["--model_name_or_path", "x", "--dataset_name", saved]
    ).stages
    assert len(load_rows(recipe, purpose="sft").train) == 1


def test_a_slash_can_be_said(talk):
    chat = module.Chat(Silent(), talk, "place", None)
    chat.take("//slash")
    assert talk.messages[0] == {"role": "user", "content": "/slash"}


class Silent:
    """A screen that remembers."""

    is_person = False

    def __init__(self, lines=()):
        self.lines, self.shown = iter(lines), []

    def read(self):
        line = next(self.lines, None)
        if isinstance(line, BaseException):
            raise line
        return line

    def show(self, piece):
        self.shown.append(piece)

    def end(self, note=""):
        self.shown.append(f"[{note}]")

    say = end


def test_ctrl_c_stops_the_answer_and_not_the_chat(talk, monkeypatch):
    advance = Writing.advance
    calls = []

    def interrupted(self):
        calls.append(1)
        if len(calls) in (3, 4):
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Writing, "advance", interrupted)
    screen = Silent(["one", "two", KeyboardInterrupt(), "three", Interrupted("SIGTERM")])
    with pytest.raises(Interrupted):
        module.Chat(screen, talk, "place", None).go_on()
    notes = [each for each in screen.shown if each.startswith("[")]
    assert notes[0] == "[stopped; what it said stays]"
    assert notes[1] == "[stopped, and your question is forgotten]"
    assert notes[2] == "[Ctrl-D or /quit ends the chat]"
    assert [each["content"] for each in talk.messages[::2]] == ["one", "three"]
    assert [each["role"] for each in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[1]["content"] == "".join(screen.shown[:2])


def test_what_is_shown_in_pieces_is_the_answer(talk):
    pieces = list(talk.answers("hello"))
    assert len(pieces) > 1
    assert talk.last is not None
    assert "".join(pieces) == talk.last.text == talk.messages[-1]["content"]


def test_what_no_longer_fits_is_told_and_not_shown_to_the_model(run, told):
    model, words = load(run / "sft")
    model.config.max_position_embeddings = 120
    talk = Conversation(TransformersEngine(model, words), Sampling(40), 0, told.append, system="s")
    for number in range(4):
        list(talk.answers(f"{number} {'x' * 20}"))
    assert talk.last is not None
    assert len(talk.messages) == 8
    assert [each["role"] for each in talk.last.prompt] == ["system", "user"]
    assert talk.last.prompt[-1]["content"].startswith("3")
    assert "the first 6 messages no longer fit into the 120 tokens" in told[-1]
    list(talk.answers("x" * 60))
    assert "room for an answer of" in told[-1]
    assert talk.last.sampling.max_completion_length < 40
    with pytest.raises(DataError, match="leave no room for an answer"):
        list(talk.answers("x" * 200))
    assert len(talk.messages) == 10, "what could not be asked is not kept"


def test_thinking_spends_no_more_than_it_may(talk):
    assert "up to 16 samples of 50 tokens in all vote" in talk.think(50)
    (text,) = talk.answers("hello")
    assert talk.last is not None
    assert (talk.last.text, talk.last.thinking) == (text, 50)
    assert 12 < talk.last.tokens <= 50
    assert talk.think(0) == "answers are no longer thought about"
    assert len(list(talk.answers("hello"))) > 1


def test_a_model_made_to_think_is_forced_to_end(engine, told, monkeypatch):
    words = tiny.tokenizer()
    words.chat_template = served.TEMPLATE + "{# </think> #}"
    talk = Conversation(TransformersEngine(engine.model, words), Sampling(6), 0, told.append)
    assert talk.think(20) == "it thinks for at most 20 tokens, then answers"
    (text,) = talk.answers("hello")
    assert "</think>" in text
    assert talk.last is not None
    assert talk.last.tokens <= 20 + len("</think>") + 6


def test_greedy_samples_cannot_vote(engine, told):
    talk = Conversation(engine, Sampling(6, temperature=0.0), 0, told.append)
    with pytest.raises(RecipeError, match="nothing to vote on"):
        talk.think(100)


def test_what_a_sample_votes_for():
    assert said("It is 12.") == said("So 12") == "12"
    assert said("Yes, it is") == said("yes, it is")
    assert said("She has 3 apples") != said("He has 3 apples")
    assert said("") is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\033[2J\033]0;title\a", "\u241b[2J\u241b]0;title\u2407"),
        ("a\rb\bc\x7f", "a\u240db\u2408c\u2421"),
        ("\x9b31m \u202eevil \u2028", "\ufffd31m \ufffdevil \ufffd"),
        ("[bold]ü[/] \t\n 🙂\u200d\u00a0中", "[bold]ü[/] \t\n 🙂\u200d\u00a0中"),
    ],
)
def test_what_a_model_writes_moves_no_cursor(text, shown):
    assert harmless(text) == shown


def test_a_screen_writes_no_codes_and_reads_no_markup(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    screen = module.Screen()
    for piece in ("[bold]x[/bold] :smile: \033[1m", " https://a.b 12"):
        screen.show(piece)
    screen.end("[red]note[/red]")
    captured = capsys.readouterr()
    assert captured.out == "[bold]x[/bold] :smile: \u241b[1m https://a.b 12\n"
    assert captured.err == "[red]note[/red]\n"


def test_a_torn_line_of_feedback_stays_alone(tmp_path):
    path = tmp_path / "feedback.jsonl"
    path.write_text('{"torn')
    row = append_feedback(
        path, prompt=[], completion="é", label=True, adapter_digest="d", seed=1, temperature=1.0
    )
    append_line(path, "{}")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"torn'
    assert json.loads(lines[1]) == row
    assert lines[2] == "{}"


def test_a_base_that_cannot_chat_is_told(tiny_base):
    with pytest.raises(RecipeError, match="no chat template, so there is no talking"):
        module.chat(str(tiny_base))


def test_where_thumbs_are_kept(run, tmp_path):
    assert module.feedback_path(str(run), str(run / "ppo")) == run / "feedback.jsonl"
    assert module.feedback_path(str(run / "ppo"), str(run / "ppo")) == run / "feedback.jsonl"
    assert module.feedback_path(str(tmp_path), str(tmp_path)) == tmp_path / "feedback.jsonl"
    assert str(module.feedback_path("you/model", "you/model")) == "feedback.jsonl"
