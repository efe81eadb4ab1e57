"""Feedback as preferences: what is compared with what, what is left out and counted."""

import json

import pytest

import toolkit
from tests import tiny
from toolkit.data.sources import load_rows
from toolkit.errors import DataError
from toolkit.recipe import recipe_from_keywords

USER = [{"role": "user", "content": "Where is Bob?"}]


def row(completion, label, prompt=USER, **more):
    return {"prompt": prompt, "completion": completion, "label": label} | more


def read(tmp_path, *rows, stage="dpo", **keys):
    file = tiny.save_rows(tmp_path / "feedback.jsonl", list(rows))
    recipe = recipe_from_keywords(stage, model_name_or_path="x", dataset_name=str(file), **keys)
    return load_rows(recipe.stages[0], purpose="preference")


def lists(found):
    def words(answer):
        return answer if isinstance(answer, str) else answer[0]["content"]

    return [([words(a) for a in row["answers"]], row["ranks"]) for row in found.train]


def test_good_and_bad_answers_to_a_prompt_are_compared(tmp_path):
    other = [{"role": "user", "content": "And Cid?"}]
    found = read(
        tmp_path, row("Here.", True), row("No.", False, other), row("There.", False),
        row("Yes.", True), row("Gone.", False),
    )  # fmt: skip
    assert lists(found) == [(["Here.", "Yes.", "There.", "Gone."], [1, 1, 2, 2])]
    assert found.train[0]["prompt"] == USER
    assert found.train[0]["row"] == 1
    (origin,) = found.provenance
    assert (origin["feedback"]["compared"], origin["feedback"]["alone"]) == (1, 1)
    assert "1 prompts with good and bad answers; 1 rows left out: nothing to compare" in " ".join(
        found.notes
    )


def test_what_is_better_stands_beside_what_was_said(tmp_path):
    rows = [
        row("There.", False, better="Here.", adapter_digest="sha256:1"),
        row("There.", False, better="Here.", adapter_digest="sha256:1"),
        row("Well.", None, [{"role": "user", "content": "How?"}], better="Well, thanks."),
        row("Same.", False, [{"role": "user", "content": "What?"}], better="Same."),
    ]
    found = read(tmp_path, *rows)
    assert lists(found) == [(["Here.", "There."], [1, 2]), (["Well, thanks.", "Well."], [1, 2])]
    (origin,) = found.provenance
    counts = origin["feedback"]
    assert counts["adapter_digests"] == ["sha256:1"]
    assert (counts["corrected"], counts["repeated"], counts["alone"]) == (2, 2, 1)


def test_an_answer_called_good_and_bad_is_left_out_and_repeats_count_once(tmp_path):
    found = read(
        tmp_path, row("a", True), row("a", False), row("b", True), row("b", True), row("c", False),
        row("d", None),
    )  # fmt: skip
    assert lists(found) == [(["b", "c"], [1, 2])]
    counts = found.provenance[0]["feedback"]
    assert (counts["contradictory"], counts["repeated"], counts["unrated"]) == (2, 1, 1)


def test_the_form_of_trl_with_messages_is_the_same(tmp_path):
    def said(words):
        return [{"role": "assistant", "content": words}]

    found = read(tmp_path, row(said("Here."), True), row(said("There."), False), stage="reward")
    assert lists(found) == [(["Here.", "There."], [1, 2])]
    text = read(tmp_path, row(" 4", True, "2+2="), row(" 5", False, "2+2="))
    assert (lists(text), text.train[0]["prompt"]) == ([([" 4", " 5"], [1, 2])], "2+2=")


BROKEN = {
    "a number": (row("a", 1), "row 1, column 'label': expected true or false, found a number"),
    "no answer": (row(None, True), "row 1, column 'completion': expected text or messages"),
    "no prompt": (row("a", True, None), "row 1, column 'prompt': expected text or messages"),
    "a blank": (row("a", False, better=" "), "row 1, column 'better': the text is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_and_may_be_left_out(tmp_path, name):
    broken, message = BROKEN[name]
    good = [row("x", True), row("y", False)]
    with pytest.raises(DataError, match=message):
        read(tmp_path, broken, *good)
    found = read(tmp_path, broken, *good, max_bad_rows=1)
    assert lists(found) == [(["x", "y"], [1, 2])]
    assert "1 bad row left out" in " ".join(found.notes)


def test_nothing_to_compare_says_why(tmp_path):
    with pytest.raises(DataError, match=r"nothing can be compared: .*2 rows left out"):
        read(tmp_path, row("a", True), row("b", True))


def test_who_would_imitate_bad_answers_is_warned(tmp_path):
    recipe = recipe_from_keywords("sft", model_name_or_path="x", dataset_name="y").stages[0]
    rated = load_rows(recipe, train_dataset=[row("a", True, "p"), row("b", False, "p")])
    assert "warning: train_dataset: label says which completions are good" in " ".join(rated.notes)
    classes = load_rows(recipe, train_dataset=[row("a", 0, "p"), row("b", 1, "p")])
    assert "warning" not in " ".join(classes.notes)


def test_dpo_trains_on_feedback(tiny_base, tmp_path, capsys):
    rows = [
        row("There.", False, [{"role": "user", "content": f"Where {at}?"}], better=f"Here {at}.")
        for at in range(4)
    ]
    file = tiny.save_rows(tmp_path / "feedback.jsonl", rows)
    result = toolkit.dpo(
        model_name_or_path=str(tiny_base), dataset_name=str(file), lora_r=4, max_steps=1,
        output_dir=str(tmp_path / "dpo"), per_device_train_batch_size=4, report_to="none",
    )  # fmt: skip
    assert result.manifest["data"][0]["feedback"]["corrected"] == 4
    assert result.manifest["pairs"]["train"]["pairs"] == 4
    assert json.loads((tmp_path / "dpo" / "stage.json").read_text())["stage"] == "dpo"
    assert "4 better answers" in " ".join(capsys.readouterr().out.split())
