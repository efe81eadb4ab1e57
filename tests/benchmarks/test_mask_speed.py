"""How fast the response mask is: conversations of 500 tokens per second and core."""

import itertools
import random
import sys
import time
from pathlib import Path

import pytest

from toolkit.data.chat import training_sequences

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from test_data_chat_oracle import TEMPLATES, byte_level, stops_of

WORDS = [
    "the",
    "a",
    "model",
    "answers",
    "what",
    "it",
    "was",
    "asked",
    "with",
    "care",
    "then",
    "stops",
]


def conversations(tokenizer, turns, count=200, tokens=500):
    """Conversations of about `tokens` tokens in `turns` turns, all different."""
    source = random.Random(0)
    unit = len(tokenizer(" ".join(WORDS)).input_ids) / len(WORDS)
    length = round(tokens / unit / turns / 2)
    for _ in range(count):
        texts = (" ".join(source.choices(WORDS, k=length)) for _ in itertools.count())
        yield [
            {"role": role, "content": next(texts)}
            for _ in range(turns)
            for role in ("user", "assistant")
        ]


@pytest.mark.benchmark
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llama3_training", "qwen3_instruct_2507"])
def test_conversations_per_second(name, turns, capsys):
    template = TEMPLATES[name]
    special = [
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    tokenizer = byte_level(template, special=special, eos=stops_of(name)[0])
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    rows = list(conversations(tokenizer, turns))
    training_sequences(tokenizer, rows[0])
    start = time.process_time()
    made = [training_sequences(tokenizer, row) for row in rows]
    ours = time.process_time() - start
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    start = time.process_time()
    for text in texts:
        tokenizer(text, add_special_tokens=False)
    tokenizing = time.process_time() - start
    mean = sum(len(s["input_ids"]) for one in made for s in one) / len(rows)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{name}, {turns} turns, {mean:.0f} tokens: {len(rows) / ours:.0f} conversations/s/core;"
            f" the tokenizer alone {len(rows) / tokenizing:.0f}/s\n"
        )
    # The work is the tokenizer once and two renders a turn; ten times the tokenizer is a defect.
    assert ours < 10 * tokenizing
