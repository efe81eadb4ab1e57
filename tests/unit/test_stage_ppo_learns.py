"""PPO learns on a trivial reward in seconds: the policy what is liked, the critic what is foreseeable."""

from statistics import mean
from typing import Any

import pytest
from datasets import Dataset

from tests import tiny_ppo

pytestmark = tiny_ppo.quiet

LENGTH = 8
# Half of the prompts earn one more, whatever is said: the critic can see which.
PROMPTS = Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": ("a" if index % 2 else "z") * (index % 5 + 1)}],
            "worth": float(index % 2),
        }
        for index in range(64)
    ]
)


def worth(worth: list[float], **columns: Any) -> list[float]:
    return worth


@pytest.mark.parametrize("seed", range(5))
def test_it_learns(seed, tiny_base, tmp_path):
    model, words = tiny_ppo.policy(tiny_base, lora_r=8)
    rows = model.get_base_model().get_input_embeddings().weight
    is_liked = (rows[:, 0] > 0.1).tolist()  # three tokens in ten, which the base can tell

    def liked(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [sum(is_liked[token] for token in ids) / LENGTH for ids in completion_ids]

    trainer = tiny_ppo.trainer(
        model, words, tmp_path, reward_funcs=[liked, worth], train_dataset=PROMPTS, seed=seed,
        max_completion_length=LENGTH, per_device_train_batch_size=32, steps_per_generation=2,
        num_iterations=2, max_steps=60, learning_rate=1e-2, value_learning_rate=1e-2, vf_coef=1.0,
        beta=0.01, activation_checkpointing=False,
    )  # fmt: skip
    before = tiny_ppo.held(trainer.model)
    trainer.train()
    expected = {"default": "all", "value": "all", "ref": "none", "base": "none"}
    assert tiny_ppo.moved(before, trainer.model) == expected
    shares = tiny_ppo.logged(trainer, "rewards/liked/mean")
    explained = tiny_ppo.logged(trainer, "value/explained_variance")
    assert len(shares) == len(explained) == 15
    assert shares[0] < 0.4
    assert mean(shares[-3:]) > mean(shares[:3]) + 0.2
    # From the first third on; single batches after a large step may be far off for once.
    assert mean(explained[5:10]) > 0.6
    assert mean(explained[10:]) > 0.6
    assert 0.1 < tiny_ppo.logged(trainer, "kl")[-1] < 4
