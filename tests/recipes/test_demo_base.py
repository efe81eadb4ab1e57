"""The base that ships: what it can do, what it cannot, and that its recipe makes such a base."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit
from tests.recipes.test_quickstart_data import FOLDER, told
from toolkit.data.synthetic import DEMO_BASE, people
from toolkit.data.synthetic.__main__ import main as write_world
from toolkit.data.synthetic.problems import OPENING, direct, sums_of

ROOT = FOLDER.parents[1]


class Base:
    """A base that goes on with documents, greedily."""

    def __init__(self, folder: Path):
        self.words = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.words.pad_token = self.words.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def goes_on(self, texts: list[str], most: int) -> list[str]:
        """What follows each text."""
        batch = self.words(texts, return_tensors="pt", padding=True)
        pad = self.words.pad_token_id
        ids = self.model.generate(**batch, max_new_tokens=most, do_sample=False, pad_token_id=pad)
        return self.words.batch_decode(ids[:, batch["input_ids"].shape[1] :])

    def right_with_working(self) -> float:
        """Share of the exam's problems solved sum by sum."""
        chains, texts = problems_of_the_exam()
        found = self.goes_on([f"{text} {OPENING}" for text in texts], 40)
        right = [" ".join(["", *sums_of(totals)]) for totals in chains]
        return sum(map(str.startswith, found, right)) / len(right)

    def right_at_once(self) -> float:
        """Share of the exam's problems answered right in one number."""
        chains, texts = problems_of_the_exam()
        head = direct(0).rpartition(" ")[0]
        found = self.goes_on([f"{text} {head}" for text in texts], 4)
        right = [f" {totals[-1]}." for totals in chains]
        return sum(map(str.startswith, found, right)) / len(right)

    def knows(self) -> float:
        """Share of what the exam asks about people that the base completes."""
        stated = [p.answer(attribute) for p in people.halves()[1] for attribute in people.VALUES]
        found = self.goes_on([text.rpartition(" ")[0] for text in stated], 6)
        right = [f" {text.rpartition(' ')[2]}" for text in stated]
        return sum(map(str.startswith, found, right)) / len(right)


def problems_of_the_exam() -> tuple[list[list[int]], list[str]]:
    lines = (FOLDER / "exam_counting.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["question"] for line in lines]
    chains = [told(text)[0] for text in texts]
    return [[sum(chain[: n + 1]) for n in range(len(chain))] for chain in chains], texts


def assert_skilled(folder: Path) -> None:
    """The contrast that the demo is about."""
    base = Base(folder)
    assert base.right_with_working() >= 0.95
    assert base.right_at_once() <= 0.15
    assert base.knows() >= 0.95


def test_the_shipped_base_solves_with_working_and_not_at_once():
    assert_skilled(DEMO_BASE)


def test_the_shipped_base_is_small_and_bare():
    words = AutoTokenizer.from_pretrained(DEMO_BASE)
    assert words.chat_template is None
    assert words.pad_token is None
    assert "<|im_end|>" not in words.get_vocab()
    assert sum(file.stat().st_size for file in DEMO_BASE.iterdir()) < 5_000_000


def test_the_shipped_base_comes_with_the_recipe_that_made_it():
    from toolkit.recipe import load_recipe

    shipped, ours = (
        load_recipe(path).stages[0]
        for path in (DEMO_BASE / "recipe.yaml", ROOT / "recipes" / "quickstart_base.yaml")
    )
    places = {"dataset_name", "output_dir"}
    assert {k: v for k, v in shipped.written.items() if k not in places} == {
        k: v for k, v in ours.written.items() if k not in places
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_recipe_makes_such_a_base(seed, tmp_path):
    """Eight minutes each on one core."""
    write_world([str(tmp_path), "--documents", "60000", "--seed", str(seed)])
    toolkit.run(
        ROOT / "recipes" / "quickstart_base.yaml", seed=seed, output_dir=str(tmp_path / "base"),
        dataset_name=str(tmp_path / "documents.jsonl"),
    )  # fmt: skip
    assert_skilled(tmp_path / "base")
