"""A reward model on real input: right and wrong solutions of real problems, by a real base."""

import json
import time

import pytest
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

import toolkit
from tests.recipes.test_real_input import digests
from toolkit.models.reward import load_reward_model

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
QUESTIONS = 120


def ranked(path):
    """Problems that some models solve and others do not, with the publisher's own verdicts."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answers = {row[name]["solution"]: row[name]["is_correct"] for name in MODELS}
        if len(set(answers.values())) == 2:
            ranks = [1 if right else 2 for right in answers.values()]
            found.append(
                {"prompt": row["question"] + "\n", "answers": list(answers), "ranks": ranks}
            )
    return found


@pytest.fixture(scope="module")
def rows(assets):
    found = ranked(assets / "data" / "gsm8k" / "model_solutions_600.jsonl")
    assert len(found) > 300
    return found[:QUESTIONS]


@pytest.fixture(scope="module")
def trained(stories, rows, tmp_path_factory):
    """The stage, with the time that it took."""
    before, started = digests(stories), time.process_time()
    result = toolkit.reward(
        model=str(stories), train_dataset=rows, test_split_size=40, max_length=448, seed=1,
        output_dir=str(tmp_path_factory.mktemp("real") / "reward"), lora_r=8, learning_rate=2e-3,
        max_steps=16, per_device_train_batch_size=8, per_device_eval_batch_size=16,
        save_strategy="no",
    )  # fmt: skip
    assert digests(stories) == before
    assert time.process_time() - started < 60
    return result


def test_its_accuracy_is_reported_with_what_is_known_of_it(trained):
    """A base of 260 thousand parameters cannot solve these: chance is what it honestly has."""
    found = trained.metrics["pairs"]
    assert 25 <= found["prompts"] <= 40
    assert found["pairs"] > found["prompts"]
    assert found["low"] <= found["accuracy"] <= found["high"]
    assert found["high"] - found["low"] > 0.15, "few prompts tell little"
    assert sum(part["pairs"] for part in found["by_length"].values()) == found["pairs"]
    assert trained.metrics["eval_loss"] < 1.0


def test_pairs_are_held_out_by_problem_and_counted(trained, rows):
    manifest = json.loads((trained.output_dir / "stage.json").read_text())
    counted = manifest["pairs"]
    assert counted["train"]["rows"] + counted["eval"]["rows"] == QUESTIONS
    lines = [
        json.loads(line) for line in (trained.output_dir / "pairs.jsonl").read_text().splitlines()
    ]
    assert len(lines) == counted["eval"]["pairs"]
    verdicts = {
        row["prompt"].strip(): dict(zip(row["answers"], row["ranks"], strict=True)) for row in rows
    }
    for line in lines[:10]:
        held = verdicts[line["prompt"].replace("<s>", "").strip()]
        answers = {" ".join(answer.split()): rank for answer, rank in held.items()}
        said = [" ".join(line[name].replace("</s>", "").split()) for name in ("chosen", "rejected")]
        assert [answers[text] for text in said] == [1, 2]


def test_real_answers_are_ranked_the_same_by_plain_libraries(trained, rows):
    judge, words = load_reward_model(str(trained.output_dir))
    plain = AutoPeftModelForSequenceClassification.from_pretrained(
        trained.output_dir, num_labels=1
    ).eval()
    assert AutoTokenizer.from_pretrained(trained.output_dir).get_vocab() == words.get_vocab()
    row = rows[0]
    texts = [row["prompt"] + answer for answer in row["answers"]]
    ids = [words(text)["input_ids"] for text in texts]
    ours = judge.score(ids, batch_size=4)
    assert len({round(score, 6) for score in ours}) == len(texts)
    for text, score in zip(texts, ours, strict=True):
        logits = plain(**words(text, return_tensors="pt", return_token_type_ids=False)).logits
        assert float(logits.detach()) == pytest.approx(score, abs=1e-5)
