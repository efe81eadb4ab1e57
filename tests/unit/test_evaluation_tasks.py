"""What a task in a recipe becomes: its rows, its prompts, its checker, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from tests import tiny
from toolkit.errors import DataError, RecipeError
from toolkit.evaluation.tasks import KEYS, Task, load_tasks

ROWS = [{"question": f"What is {index}+1?", "answer": index + 1} for index in range(6)]
SHOTS = [{"question": f"What is {index}0+1?", "answer": f"{index}1"} for index in range(1, 4)]
CAPITALS = [
    {"question": "Capital of France?", "answer": "A", "choices": ["Paris", "London"]},
    {"question": "Capital of England?", "answer": "London", "choices": ["Paris", "London"]},
]


def load(**keys) -> Task:
    (task,) = load_tasks([keys], where="exam.yaml:7")
    return task


def test_a_file_is_a_task(tmp_path: Path):
    path = tiny.save_rows(tmp_path / "sums.jsonl", ROWS)
    task = load(dataset_name=str(path))
    assert task.name == "sums"
    assert [row.question for row in task.questions] == [row["question"] for row in ROWS]
    assert [row.answer for row in task.questions] == ["1", "2", "3", "4", "5", "6"]
    assert task.questions[2].where == f"{path}, row 3"
    assert (task.checker, task.few_shot, task.system) == ("number", [], None)
    assert task.is_right(task.questions[1], "It is 2.0.")
    assert not task.is_right(task.questions[1], "It is 3.")


def test_real_data_is_a_task(gsm8k):
    task = load(dataset_name=str(gsm8k), limit=50)
    assert (task.name, len(task.questions), task.checker) == ("train", 50, "number")
    assert task.is_right(task.questions[0], "so 70 + 2 = 72")


def test_python_rows_are_a_task():
    for rows in (
        ROWS,
        tuple(ROWS),
        Dataset.from_list(ROWS),
        Dataset.from_list(ROWS).select([0, 3]),
    ):
        task = load(name="sums", rows=rows)
        assert [row.answer for row in task.questions] == [str(row["answer"]) for row in rows]
        assert task.questions[1].where == "sums, row 2"


def test_several_tasks_and_ready_ones():
    ready = load(name="ready", rows=ROWS)
    tasks = load_tasks([ready, {"name": "capitals", "rows": CAPITALS}], where="x")
    assert [task.name for task in tasks] == ["ready", "capitals"]
    assert tasks[0] is ready
    with pytest.raises(RecipeError, match=r"^x: tasks\[1\]: another task is called 'rows'"):
        load_tasks([{"rows": ROWS}, {"rows": CAPITALS}], where="x")


def test_names_of_tasks(tmp_path: Path):
    folder = tmp_path / "exams"
    folder.mkdir()
    path = tiny.save_rows(folder / "a.b-test.jsonl", ROWS)
    assert load(dataset_name=path).name == "a.b-test"
    assert load(dataset_name=folder).name == "exams"
    assert load(dataset_name=folder, name="own").name == "own"


def test_a_folder_gives_its_test_split_and_few_shot_its_training_split(tmp_path: Path):
    tiny.save_rows(tmp_path / "test.jsonl", ROWS)
    tiny.save_rows(tmp_path / "train.jsonl", SHOTS)
    task = load(dataset_name=str(tmp_path), few_shot=str(tmp_path))
    assert (len(task.questions), len(task.few_shot)) == (6, 3)
    assert len(load(dataset_name=str(tmp_path), dataset_split="train[:2]").questions) == 2


def test_columns_of_other_names():
    maths = [{"problem": "1+1?", "solution": r"It is \boxed{2}", "answer": "2", "level": 1}]
    assert load(rows=maths).questions[0].answer == "2"
    assert load(rows=maths, answer_column="solution").questions[0].answer == r"It is \boxed{2}"
    assert load(rows=maths, question_column="solution").questions[0].question == "It is \\boxed{2}"
    assert load(rows=[{"instruction": "1+1?", "output": "2"}]).questions[0].question == "1+1?"


def test_checkers_by_default():
    def checker(*answers):
        return load(rows=[{"question": f"{a}?", "answer": a} for a in answers]).checker

    assert checker("5", 2.5, "so\n#### 1,000", "$3.") == "number"
    assert checker("5", "Paris") == "exact"
    assert checker("5", "12:30") == "exact"
    assert checker("Istereth works as a cook.") == "exact"
    assert load(rows=CAPITALS).checker == "choice"


def test_an_answer_is_written_as_json_writes_it():
    answers = [5, -0.5, 1e22, 2**70, "007", "  5 "]
    task = load(rows=[{"question": f"{a}?", "answer": a} for a in answers])
    written = [row.answer for row in task.questions]
    assert written == ["5", "-0.5", "1e+22", str(2**70), "007", "5"]


def test_choices():
    task = load(rows=CAPITALS, system="Be brief.")
    first, second = task.questions
    assert task.messages(first) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital of France?\nA. Paris\nB. London"},
    ]
    assert task.is_right(first, "(A)")
    assert task.is_right(first, "It is Paris.")
    assert not task.is_right(first, "B")
    assert task.is_right(second, "b")


def test_choices_of_the_hub():
    arc = {"question": "Sky?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}}
    task = load(rows=[arc | {"answerKey": "2"}], answer_column="answerKey")
    assert (task.questions[0].answer, task.questions[0].choices) == ("B", ("red", "blue"))
    labels = Features(
        {"question": Value("string"), "choices": [Value("string")], "answer": ClassLabel(2, ["A", "B"])}
    )  # fmt: skip
    mmlu = {"question": ["Sky?"], "choices": [["red", "blue"]], "answer": [1]}
    assert load(rows=Dataset.from_dict(mmlu, features=labels)).questions[0].answer == "B"
    numbers = [{"question": "1+1?", "choices": [1, 2], "answer": 2}]
    assert load(rows=numbers).is_right(load(rows=numbers).questions[0], "B")


def test_conversations_with_examples():
    task = load(rows=ROWS, few_shot=SHOTS, system="Add.", prompt="Q: {question}\nThink.")
    assert task.messages(task.questions[0]) == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "Q: What is 0+1?\nThink."},
    ]
    assert task.messages(task.questions[0], 2) == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "Q: What is 10+1?\nThink."},
        {"role": "assistant", "content": "11"},
        {"role": "user", "content": "Q: What is 20+1?\nThink."},
        {"role": "assistant", "content": "21"},
        {"role": "user", "content": "Q: What is 0+1?\nThink."},
    ]
    assert len(task.messages(task.questions[0], 9)) == 1 + 2 * 3 + 1


def test_documents_with_examples():
    task = load(rows=ROWS, few_shot=SHOTS, system="Add.")
    text, stops = task.document(task.questions[0], 1)
    assert text == "Add.\n\nQuestion: What is 10+1?\nAnswer: 11\n\nQuestion: What is 0+1?\nAnswer:"
    assert stops == ("\n\n", "\nQuestion:")
    assert task.document(task.questions[0])[0] == "Add.\n\nQuestion: What is 0+1?\nAnswer:"


@pytest.mark.parametrize("where", ["rows", "few_shot"])
def test_a_blank_line_ends_no_answer_that_may_have_one(where):
    long = {"question": "Long?", "answer": "First.\n\nThen 5"}
    task = load(**{"rows": ROWS, "few_shot": SHOTS, where: [long]})
    assert task.document(task.questions[0], 1)[1] == ("\nQuestion:",)


def test_words_of_the_data_are_no_template():
    rows = [{"question": "{choices} {0} {question} %s {", "answer": "5"}]
    task = load(rows=rows, prompt="{question} {x} {choices}|")
    asked = task.messages(task.questions[0])[0]["content"]
    assert asked == "{choices} {0} {question} %s { {x} |"


def test_the_first_rows_are_the_limit():
    assert load(rows=ROWS, limit=2).questions == load(rows=ROWS, limit=4).questions[:2]
    assert len(load(rows=ROWS, limit=100).questions) == 6


def test_digest_is_of_what_is_asked_and_how_it_is_graded(tmp_path: Path):
    path = tiny.save_rows(tmp_path / "sums.jsonl", ROWS)
    task = load(rows=ROWS, few_shot=SHOTS)
    assert task.digest == load(name="other", dataset_name=str(path), few_shot=SHOTS).digest
    changed = [
        load(rows=ROWS[:5], few_shot=SHOTS), load(rows=ROWS, few_shot=SHOTS[:2]), load(rows=ROWS),
        load(rows=ROWS[::-1], few_shot=SHOTS), load(rows=ROWS, few_shot=SHOTS, system="Add."),
        load(rows=ROWS, few_shot=SHOTS, prompt="Q: {question}"),
        load(rows=ROWS, few_shot=SHOTS, checker="exact"),
        replace(task, questions=[replace(task.questions[0], answer="7"), *task.questions[1:]]),
        replace(task, questions=[replace(task.questions[0], choices=("7",)), *task.questions[1:]]),
    ]  # fmt: skip
    assert len({task.digest, *(other.digest for other in changed)}) == 1 + len(changed)


REFUSED = {
    "no mapping": ("exam.jsonl", r"tasks\[0\]: expected a mapping with dataset_name, found text"),
    "unknown": ({"dataset_nam": "x"}, "unknown key 'dataset_nam'; did you mean 'dataset_name'"),
    "far": ({"zzz": 1}, "unknown key 'zzz'; known: name, dataset_name"),
    "no rows": ({"name": "x"}, "expected dataset_name or, from Python, rows"),
    "both": ({"dataset_name": "x", "rows": ROWS}, "one of the two"),
    "type": ({"rows": ROWS, "name": 5}, r"tasks\[0\]\.name: expected str, found 5"),
    "rows type": ({"rows": "exam.jsonl"}, r"\.rows: expected list or tuple or Dataset"),
    "empty": ({"rows": ROWS, "system": ""}, r"\.system: expected str, found ''"),
    "boolean": ({"rows": ROWS, "limit": True}, r"\.limit: expected int, found True"),
    "limit": ({"rows": ROWS, "limit": 0}, r"\.limit: expected at least 1, found 0"),
    "prompt": ({"rows": ROWS, "prompt": "{questions}"}, r"\.prompt: there is no {question} in it"),
    "checker": ({"rows": ROWS, "checker": "numbers"}, "'numbers'; did you mean 'number'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_entries_that_are_no_task(name):
    entry, message = REFUSED[name]
    with pytest.raises(RecipeError, match=message) as error:
        load_tasks([entry], where="exam.yaml:7")
    assert str(error.value).startswith("exam.yaml:7: tasks[0]")
    assert "\n" not in str(error.value)


def test_an_empty_key_is_an_absent_one():
    task = load(rows=ROWS, **dict.fromkeys(KEYS.keys() - {"rows"}))
    assert replace(task, name="") == replace(load(rows=ROWS), name="")


GOOD = {"question": "1+1?", "answer": "2"}
BROKEN = {
    "no column": ([{"asked": "?", "answer": 1}], {}, "no column question or instruction or problem"),
    "no such column": ([GOOD], {"answer_column": "key"}, "no column key; found question, answer"),
    "null": ([GOOD, {"question": None, "answer": "2"}], {}, "row 2, column 'question': expected text"),
    "absent": ([GOOD, {"question": "x"}], {}, "row 2, column 'answer': expected text, found null"),
    "blank": ([GOOD, {"question": " ", "answer": "2"}], {}, "row 2, column 'question': the text is"),
    "list": ([GOOD, {"question": "x", "answer": ["2"]}], {}, "column 'answer': .*found a list"),
    "boolean": ([{"question": "x", "answer": True}], {}, "expected text, found a boolean"),
    "no number": (
        [GOOD, {"question": "x", "answer": "two"}], {"checker": "number"},
        "row 2: answer 'two': no number in it, so checker 'number' cannot grade it",
    ),
    "only points": ([{"question": "x", "answer": "..."}], {}, "nothing but punctuation"),
    "no choice": ([CAPITALS[0] | {"answer": "C"}], {}, "answer 'C': it names none or several of Paris"),
    "an index": ([CAPITALS[0] | {"answer": 1}], {}, "answer '1': it names none or several"),
    "choices missing": ([CAPITALS[0], GOOD], {}, "row 2, column 'choices': null or absent"),
    "choices are text": ([CAPITALS[0] | {"choices": "Paris"}], {}, "expected a list of texts, found text"),
    "one choice": ([CAPITALS[0] | {"choices": ["Paris"]}], {}, "2 to 26 choices, found 1"),
    "same choice": ([CAPITALS[0] | {"choices": ["a", "b", "A."]}], {}, r"choices\[2\]': .* choice A"),
    "letters": ([CAPITALS[0] | {"choices": ["B", "A"]}], {}, "B is the letter of another choice"),
    "empty choice": ([CAPITALS[0] | {"choices": ["Paris", "?"]}], {}, "nothing but punctuation"),
    "few-shot row": ([GOOD], {"few_shot": [GOOD, {"answer": 1}]}, "t few_shot, row 2, column 'quest"),
    "examined": (
        [GOOD | {"question": "One?"}], {"few_shot": [{"question": " ONE", "answer": "2"}]},
        "t few_shot, row 1: the same question as t, row 1; an example must not be examined",
    ),
    "examined choice": ([CAPITALS[0]], {"few_shot": CAPITALS}, "t few_shot, row 1: the same question"),
    "no rows": ([], {}, "there are no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_rows_that_cannot_be_asked_or_graded(name):
    rows, keys, message = BROKEN[name]
    with pytest.raises(DataError, match=message) as error:
        load(name="t", rows=rows, **keys)
    assert "\n" not in str(error.value)


def test_a_broken_row_of_a_file_is_named(tmp_path: Path):
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({"question": "x", "answer": None}))
    with pytest.raises(DataError, match=r"exam\.jsonl, row 3, column 'answer'"):
        load(dataset_name=str(path))


def test_the_same_question_with_other_choices_is_another():
    shown = [{"question": "Capital of France?", "choices": ["Rome", "Paris"], "answer": "B"}]
    assert len(load(rows=CAPITALS, few_shot=shown).few_shot) == 1
