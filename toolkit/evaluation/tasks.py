"""Tasks of an exam: what is asked, how a prompt is made of it, and what a right answer is.

In a recipe, `tasks` is a list of mappings with the keys of `KEYS`:

    tasks:
      - {name: maths, dataset_name: exam.jsonl, few_shot: shown.jsonl}
      - {dataset_name: openai/gsm8k, dataset_config: main, limit: 200}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from toolkit.artifacts.manifest import digest_of
from toolkit.data.columns import kind_of, listed, with_place
from toolkit.data.files import read_objects, suffix_of
from toolkit.data.tables import load_table
from toolkit.errors import DataError, RecipeError
from toolkit.evaluation.questions import CHOICES, Question, questions_of
from toolkit.recipe.keys import did_you_mean
from toolkit.rewards.answer import (
    CHECKERS,
    LETTERS,
    chosen,
    ends_in_number,
    final_number,
    is_gradable,
    normalised,
)

KEYS: Mapping[str, tuple[type, ...]] = {
    "name": (str,),  # default: the file's name without its suffix
    "dataset_name": (str, Path),  # a file, a folder or a Hub id
    "dataset_config": (str,),
    "dataset_split": (str,),  # default: of a file all of it, else test
    "dataset_revision": (str,),
    "rows": (list, tuple, Dataset),  # instead of dataset_name, from Python
    "question_column": (str,),
    "answer_column": (str,),
    "few_shot": (str, Path, list, tuple, Dataset),  # solved examples; they are never examined
    "checker": (str,),  # default: see `default_checker`
    "prompt": (str,),  # with {question}, and {choices} where there are some
    "system": (str,),
    "working": (str,),  # words that show that a completion shows its working
    "limit": (int,),  # the first rows, so that a higher limit asks the same questions and more
}
"""The keys of a task in a recipe, and what each may be."""

PLACEHOLDER = re.compile(r"\{(question|choices)\}")


@dataclass(frozen=True)
class Task:
    """Questions that are asked and graded in one way.

    Attributes:
        name: no other task of the exam has it.
        questions: what is asked.
        few_shot: solved examples that can be shown before a question.
        checker: "number", "exact" or "choice"; see `toolkit.rewards.answer`.
        prompt: the user's words, with {question} and {choices}.
        system: the system's words; None for none.
        working: what a completion that shows its working has in it; None where nobody asks.
    """

    name: str
    questions: list[Question]
    few_shot: list[Question] = field(default_factory=list)
    checker: str = "exact"
    prompt: str = "{question}"
    system: str | None = None
    working: str | None = None

    def messages(self, question: Question, shots: int = 0) -> list[dict[str, str]]:
        """The conversation that ends with a question, for a model with a chat template."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.few_shot[:shots]:
            found.append({"role": "user", "content": self.asked(example)})
            found.append({"role": "assistant", "content": example.answer})
        return [*found, {"role": "user", "content": self.asked(question)}]

    def document(self, question: Question, shots: int = 0) -> tuple[str, tuple[str, ...]]:
        """The document that a base without a chat template goes on with, and where its answer ends.

        A blank line ends an answer, unless a reference answer or an example has one; the next
        "Question:" always does.
        """
        system = [self.system] if self.system else []
        examples = [
            f"Question: {self.asked(example)}\nAnswer: {example.answer}"
            for example in self.few_shot[:shots]
        ]
        text = "\n\n".join([*system, *examples, f"Question: {self.asked(question)}\nAnswer:"])
        return text, ("\nQuestion:",) if self.has_blank_lines else ("\n\n", "\nQuestion:")

    def asked(self, question: Question) -> str:
        """A question in the words of the prompt."""
        words = {"question": question.question, "choices": question.lettered}
        return PLACEHOLDER.sub(lambda found: words[found[1]], self.prompt)

    def is_right(self, question: Question, text: str) -> bool:
        """Whether a completion gives the answer, however it ended."""
        return CHECKERS[self.checker](text, question.answer, question.choices or ())

    def said(self, question: Question, text: str) -> str | None:
        """What a completion answers, as the checker reads it; None if it reads nothing.

        Two completions that say the same are both right or both wrong.
        """
        if self.checker == "exact":
            return normalised(text) or None
        if self.checker == "choice":
            position = chosen(text, question.choices or ())
            return None if position is None else LETTERS[position]
        number = final_number(text)
        return None if number is None else str(number)

    @cached_property
    def has_blank_lines(self) -> bool:
        """Whether an answer goes on after a blank line."""
        return any("\n\n" in row.answer for row in (*self.questions, *self.few_shot))

    @cached_property
    def digest(self) -> str:
        """Changes with the prompts, the answers and the checker, not with the name or the file.

        Nor with `working`: what is asked and what is right do not depend on it.
        """
        rows = [
            [(row.question, row.answer, row.choices) for row in part]
            for part in (self.questions, self.few_shot)
        ]
        return digest_of([rows, self.checker, self.prompt, self.system])


def load_tasks(entries: Sequence[Mapping[str, Any] | Task], *, where: str) -> list[Task]:
    """The tasks of an exam, every row of them checked.

    Args:
        entries: mappings with the keys of `KEYS`, or tasks.
        where: how messages call the place of `tasks`.

    Raises:
        RecipeError: for a key that is unknown, of the wrong type or missing, and for a name twice.
        DataError: for a row that cannot be asked or graded, and for an example that is examined.
        HubError: if the Hub does not give a data set.
    """
    tasks: list[Task] = []
    for index, entry in enumerate(entries):
        place = f"{where}: tasks[{index}]"
        task = entry if isinstance(entry, Task) else _load(entry, place)
        if any(task.name == other.name for other in tasks):
            raise RecipeError(f"{place}: another task is called {task.name!r}; give each a name")
        tasks.append(task)
    return tasks


def _load(given: Mapping[str, Any], place: str) -> Task:
    _check_keys(given, place)
    entry = {key: value for key, value in given.items() if value is not None}
    columns = {key: entry[key] for key in ("question_column", "answer_column") if key in entry}
    name = entry.get("name") or _default_name(entry)
    questions = questions_of(_examined_rows(entry, name), **columns)[: entry.get("limit")]
    few_shot = questions_of(_examples(entry, name), **columns) if entry.get("few_shot") else []
    with_choices = any(row.choices for row in questions)
    task = Task(
        name=name,
        questions=questions,
        few_shot=few_shot,
        checker=entry.get("checker") or default_checker(questions),
        prompt=entry.get("prompt") or ("{question}\n{choices}" if with_choices else "{question}"),
        system=entry.get("system"),
        working=entry.get("working"),
    )
    _check_rows(task)
    return task


def default_checker(questions: Sequence[Question]) -> str:
    """How answers are graded where a task does not say: by their choices, as numbers, or as text."""
    if any(row.choices for row in questions):
        return "choice"
    return "number" if all(ends_in_number(row.answer) for row in questions) else "exact"


def _check_keys(entry: Any, place: str) -> None:
    """Check everything about a task that can be known before its rows are read."""
    if not isinstance(entry, Mapping):
        raise RecipeError(f"{place}: expected a mapping with dataset_name, found {kind_of(entry)}")
    for key, value in entry.items():
        if key not in KEYS:
            near = did_you_mean(str(key), KEYS, f"; known: {', '.join(KEYS)}")
            raise RecipeError(f"{place}: unknown key {key!r}{near}")
        if value is None:
            continue
        if not isinstance(value, KEYS[key]) or isinstance(value, bool) or value == "":
            expected = " or ".join(kind.__name__ for kind in KEYS[key])
            raise RecipeError(f"{place}.{key}: expected {expected}, found {value!r}"[:300])
    if (entry.get("dataset_name") is None) == (entry.get("rows") is None):
        raise RecipeError(f"{place}: expected dataset_name or, from Python, rows; one of the two")
    if (limit := entry.get("limit")) is not None and limit < 1:
        raise RecipeError(f"{place}.limit: expected at least 1, found {limit}")
    if "{question}" not in (entry.get("prompt") or "{question}"):
        raise RecipeError(f"{place}.prompt: there is no {{question}} in it")
    if (checker := entry.get("checker") or "exact") not in CHECKERS:
        near = did_you_mean(checker, CHECKERS, f"; known: {', '.join(CHECKERS)}")
        raise RecipeError(f"{place}.checker: unknown checker {checker!r}{near}")


def _default_name(entry: Mapping[str, Any]) -> str:
    path = Path(entry.get("dataset_name", "rows")).expanduser()
    return path.name[: -len(suffix_of(path)) or None] if path.is_file() else path.name


def _examined_rows(entry: Mapping[str, Any], name: str) -> Dataset:
    if "rows" in entry:
        return _in_memory(entry["rows"], name)
    is_file = Path(entry["dataset_name"]).expanduser().is_file()
    split = entry.get("dataset_split", "train" if is_file else "test")
    return load_table(entry["dataset_name"], split=split, **_version(entry))[0]


def _examples(entry: Mapping[str, Any], name: str) -> Dataset:
    """The rows of `few_shot`: from Python or the recipe, or the training split of a data set."""
    shown = entry["few_shot"]
    if not isinstance(shown, str | Path):
        return _in_memory(shown, f"{name} few_shot")
    return load_table(shown, **(_version(entry) if shown == entry.get("dataset_name") else {}))[0]


def _version(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry.get(f"dataset_{key}") for key in ("config", "revision")}


def _in_memory(rows: Any, source: str) -> Dataset:
    return with_place(rows, source) if isinstance(rows, Dataset) else read_objects(rows, source)


def _check_rows(task: Task) -> None:
    """Check that every answer can be graded, and that no example gives one away.

    Raises:
        DataError: for the first row that breaks a rule.
    """
    for row in (*task.questions, *task.few_shot):
        if task.checker == "choice" and not row.choices:
            raise DataError(f"{row.where}, column {CHOICES!r}: null or absent, and others have it")
        if not is_gradable(task.checker, row.answer, row.choices or ()):
            needed = {
                "number": "no number in it",
                "exact": "it has nothing but punctuation",
                "choice": f"it names none or several of {listed(row.choices or ())}",
            }[task.checker]
            raise DataError(
                f"{row.where}: answer {row.answer[:60]!r}: {needed}, so checker {task.checker!r} "
                f"cannot grade it"
            )
    asked = {(normalised(row.question), row.choices): row for row in task.questions}
    for row in task.few_shot:
        if same := asked.get((normalised(row.question), row.choices)):
            raise DataError(
                f"{row.where}: the same question as {same.where}; an example must not be examined"
            )
