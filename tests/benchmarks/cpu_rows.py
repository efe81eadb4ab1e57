"""The bases and the rows that `tests.benchmarks.cpu` trains, and the work that is in them."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from tests.benchmarks.bare import Rows
from tests.benchmarks.scaling import save_base, words

PROMPT, COMPLETION = 122, 128  # tokens of a prompt whose completions are sampled, and of those
COMPLETIONS = 8  # of a prompt
SHARE = 0.25, 0.68  # of a row that is response, between
MAX_LENGTH = 1024
END = 1  # the stop token


@dataclass(frozen=True)
class Shape:
    """A base, and the lengths of what is trained on it.

    A step sees `batch` rows whose lengths are the quantiles of a log-normal distribution: rows
    differ as those of real data do, and yet every step has the same work in it, response included.

    Attributes:
        hidden: the width.
        layers: how many.
        heads: of attention.
        kv_heads: of keys and values.
        inner: width of the MLP.
        vocabulary: rows of the embedding, which is the head too.
        batch: rows of a step of sft.
        length: median of their lengths, in tokens.
        spread: standard deviation of the lengths' logarithms.
        prompt: tokens of a prompt whose completions are sampled.
        completion: tokens of such a completion.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    batch: int
    length: float
    spread: float
    prompt: int = PROMPT
    completion: int = COMPLETION

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Width in and out of the linear layers of one block."""
        h, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        return [(h, h), (h, kv), (h, kv), (h, h), (h, self.inner), (h, self.inner), (self.inner, h)]

    @property
    def body(self) -> int:
        """Weights of all linear layers but the head."""
        return self.layers * sum(a * b for a, b in self.linears)

    def lora(self, rank: int = 16) -> int:
        """Weights of an adapter on all of them."""
        return self.layers * rank * sum(a + b for a, b in self.linears)

    def save(self, folder: Path) -> Path:
        """A random Llama of this shape, and its tokenizer; the same at every call."""
        import torch

        torch.manual_seed(0)
        return save_base(
            folder, hidden_size=self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            intermediate_size=self.inner, vocab_size=self.vocabulary, tie_word_embeddings=True,
        )  # fmt: skip


SHAPES = {
    # 22.0 M body, 16.8 M head; of 8 rows 44 % of the padded slots are real
    "22M": Shape(512, 8, 8, 4, 1280, 32768, batch=8, length=178, spread=0.65),
    # SmolLM2-135M's config.json; of 4 rows 60 % of the slots are real
    "135M": Shape(576, 30, 9, 3, 1536, 49152, batch=4, length=260, spread=0.53),
    "tiny": Shape(32, 2, 4, 2, 64, 8000, 2, 20, 0.65, prompt=8, completion=4),
}


@dataclass(frozen=True)
class Tokens:
    """What a step of sft sees: real tokens, padded slots, labelled tokens, sum of squared lengths."""

    real: int
    padded: int
    labelled: int
    squares: int


def lengths_of(shape: Shape, count: int) -> list[tuple[int, int]]:
    """Tokens of the rows of a step, and how many of them are response, with the stop token."""
    found = []
    for at in range(count):
        place = NormalDist().inv_cdf((at + 0.5) / count)
        length = round(shape.length * math.exp(shape.spread * place))
        # the shares at even steps too, in an order that does not follow the lengths
        share = SHARE[0] + (SHARE[1] - SHARE[0]) * ((3 * at - 3) % count + 0.5) / count
        found.append((length, max(1 + END, round(length * share))))
    return found


def rows_of(stage: str, shape: Shape, steps: int, known: list[str]) -> Rows:
    """Rows of all steps, in their order; the same at every call.

    Args:
        stage: what trains them; pairs are half as many as rows.
        shape: of the base, and of the lengths.
        steps: how many.
        known: words that are a token each, with a space before them.
    """
    draw = random.Random(0)

    def said(tokens: int) -> str:
        return "".join(f" {word}" for word in draw.choices(known, k=tokens))

    if stage in ("grpo", "ppo"):
        return [{"prompt": said(shape.prompt)} for _ in range(steps)]
    rows: Rows = []
    for _ in range(steps):
        lengths = lengths_of(shape, shape.batch if stage == "sft" else shape.batch // 2)
        draw.shuffle(lengths)
        for length, trained in lengths:
            response = trained - END
            row = {"prompt": said(length - trained)}
            if stage == "sft":
                row["completion"] = said(response)
            else:
                row["chosen"] = said(response)
                row["rejected"] = said(max(1, round(response * draw.uniform(0.8, 1.2))))
            rows.append(row)
    return rows


def tokens_of(rows: Rows, batch: int) -> Tokens:
    """A step's tokens, the same in every step; a word is a token."""
    lengths = [len(f"{row['prompt']}{row['completion']}".split()) + END for row in rows]
    labelled = sum(len(row["completion"].split()) + END for row in rows)
    steps = len(rows) // batch
    longest = [max(lengths[at : at + batch]) for at in range(0, len(rows), batch)]
    squares = sum(length**2 for length in lengths)
    return Tokens(
        sum(lengths) // steps, sum(longest) * batch // steps, labelled // steps, squares // steps
    )


def useful(shape: Shape, tokens: Tokens) -> float:
    """Operations that a step of sft cannot do without, with the base frozen.

    Forward and back through the body for real tokens, the adapter's weights besides, the head where
    there is a label, and the half of attention that a causal mask leaves.
    """
    attention = 6 * shape.layers * shape.hidden * tokens.squares
    head = 4 * shape.hidden * shape.vocabulary * tokens.labelled
    return tokens.real * (4 * shape.body + 6 * shape.lora()) + head + attention


def write(folder: Path, shape: Shape, stages: list[str], steps: int) -> dict[str, Rows]:
    """The base, and the rows of every stage as JSON, in a folder."""
    shape.save(folder / "base")
    found = {stage: rows_of(stage, shape, steps, words()) for stage in stages}
    for stage, rows in found.items():
        (folder / f"{stage}.json").write_text(json.dumps(rows), encoding="utf-8")
    return found


def settings_of(stage: str, shape: Shape, steps: int) -> dict[str, Any]:
    """The arguments that every stack is given, in TRL's words."""
    from tests.benchmarks.bare import settings

    batch = {"sft": shape.batch, "grpo": COMPLETIONS, "ppo": COMPLETIONS}.get(
        stage, shape.batch // 2
    )
    found = settings(stage, batch=batch, steps=steps, completion=shape.completion)
    if stage == "ppo":
        found["num_generations"] = COMPLETIONS
    elif stage != "grpo":
        found |= {"max_length": MAX_LENGTH, "train_sampling_strategy": "sequential"}
    if stage == "reward":
        found["center_rewards_coefficient"] = 0.01  # our default, and not TRL's
    return found
