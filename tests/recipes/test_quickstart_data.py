"""The quickstart's files are what the generator writes, and its exam is truly held out."""

import itertools
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit.data import synthetic

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def test_committed_rows_are_what_the_generator_writes(tmp_path):
    synthetic.main([str(tmp_path)])
    for name in ("chats.jsonl", "exam.jsonl"):
        assert (FOLDER / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_seed_changes_the_rows_and_repeats_them():
    assert synthetic.chats(1) == synthetic.chats(1)
    assert synthetic.chats(1) != synthetic.chats(2)
    first, again = synthetic.documents(1), synthetic.documents(1)
    assert list(itertools.islice(first, 50)) == list(itertools.islice(again, 50))


def test_nobody_of_the_exam_occurs_in_the_chats():
    chats = (FOLDER / "chats.jsonl").read_text(encoding="utf-8")
    trained, examined = synthetic.people()
    assert len(trained) == len(examined) == 80
    assert all(f" {person.name}" in chats for person in trained)
    asked = " ".join(row["question"] for row in rows("exam.jsonl"))
    for person in examined:
        assert f"{person.name} " not in chats, person.name
        assert f"{person.name}?" not in chats, person.name
        assert person.name in asked


def test_documents_state_every_fact_and_answer_no_question():
    documents = list(itertools.islice(synthetic.documents(3), 20_000))
    asking = [document for document in documents if "?" in document]
    assert 0.08 < len(asking) / len(documents) < 0.12
    assert not any("." in document for document in asking)
    text = " ".join(documents)
    for person in (person for half in synthetic.people() for person in half):
        for attribute in synthetic.VALUES:
            assert person.answer(attribute) in text, person.answer(attribute)


@torch.no_grad()
def test_the_base_knows_what_the_exam_asks_but_has_no_chat_template():
    tokenizer = AutoTokenizer.from_pretrained(synthetic.DEMO_BASE, padding_side="left")
    assert tokenizer.chat_template is None
    assert tokenizer.pad_token is None
    assert "<|im_end|>" not in tokenizer.get_vocab()
    model = AutoModelForCausalLM.from_pretrained(synthetic.DEMO_BASE, dtype=torch.float32)
    known = []
    for row in rows("exam.jsonl")[:60]:
        prompt = "<|endoftext|>" + row["answer"].rsplit(" ", 1)[0]
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer("<|endoftext|>" + row["answer"], return_tensors="pt")["input_ids"]
        known.append(torch.equal(model(ids).logits[0, start - 1 : -1].argmax(-1), ids[0, start:]))
    assert sum(known) / len(known) > 0.95
    assert sum(file.stat().st_size for file in synthetic.DEMO_BASE.iterdir()) < 2_000_000
