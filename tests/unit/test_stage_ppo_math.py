"""PPO's arithmetic: numbers worked by hand, an independent reference, and the record of TRL 1.12."""

import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from trl import GRPOTrainer

from tests import reference_ppo as reference
from toolkit.stages import advantages as ours
from toolkit.stages.ppo_trainer import PPOTrainer

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "ppo_trl_1_12.json").read_text(encoding="utf-8")
)
ROLLOUT = {name: np.array(held) for name, held in GOLDEN["rollout"].items()}
MINIBATCHES = GOLDEN["minibatches"]
SETTINGS = GOLDEN["settings"]


def trainer() -> Any:
    """What PPOTrainer measures with, in one process and without a model."""
    found: Any = object.__new__(PPOTrainer)
    found.accelerator = SimpleNamespace(reduce=lambda x, **_: x)
    found._metrics = {"train": defaultdict(list)}
    return found


def tensors(*arrays: Any) -> list[Any]:
    return [torch.tensor(array) for array in arrays]


class Ours:
    """The toolkit's functions, with numpy arrays in and out as the reference has them."""

    @staticmethod
    def token_rewards(scores, kl, mask, beta):
        return ours.token_rewards(*tensors(scores, kl, mask), beta=beta).numpy()

    @staticmethod
    def gae(rewards, values, mask, gamma, lam):
        advantages, returns = ours.gae(*tensors(rewards, values, mask), gamma=gamma, lam=lam)
        return advantages.numpy(), returns.numpy()

    @staticmethod
    def whiten(advantages, mask):
        inputs = tensors(advantages, mask)
        return ours.whiten(*inputs, *trainer().moments(*inputs)).numpy()

    @staticmethod
    def value_loss(values, old_values, returns, mask, cliprange_value):
        inputs = tensors(values, old_values, returns, mask)
        return ours.clipped_value_loss(*inputs, cliprange_value=cliprange_value)[0].item()

    @staticmethod
    def policy_loss(logprobs, old_logprobs, advantages, mask, epsilon):
        return grpo_loss(*tensors(logprobs, old_logprobs, advantages, mask), epsilon=epsilon)


class Reference:
    """The reference's losses without its clip shares."""

    token_rewards = staticmethod(reference.token_rewards)
    gae = staticmethod(reference.gae)
    whiten = staticmethod(reference.whiten)

    @staticmethod
    def policy_loss(logprobs, old_logprobs, advantages, mask, epsilon):
        return reference.policy_loss(logprobs, old_logprobs, advantages, mask, epsilon)[0]

    @staticmethod
    def value_loss(values, old_values, returns, mask, cliprange_value):
        return reference.value_loss(values, old_values, returns, mask, cliprange_value)[0]


@pytest.fixture(params=[Ours, Reference], ids=["toolkit", "reference"])
def ppo(request):
    return request.param


def grpo_loss(logprobs, old_logprobs, advantages, mask, epsilon):
    """The policy loss of the installed GRPOTrainer for these numbers, as a mean over tokens."""
    batch, length = mask.shape
    prompt = torch.zeros(batch, 1, dtype=torch.long)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, mask * 0.0, None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        loss_type="bnpo",
        epsilon_low=epsilon,
        epsilon_high=epsilon,
        args=SimpleNamespace(delta=None),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(reduce=lambda x, **_: x, gather=lambda x: x),
    )
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.zeros(batch, length, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old_logprobs,
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs).item()  # pyright: ignore[reportArgumentType]


def close(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# Numbers worked by hand. Every row of a mask with a 0 has nonsense where the 0 is.

NONSENSE = 1e3
RAGGED = np.array([[1, 1, 1], [1, 0, 0]])


def test_rewards_by_hand(ppo):
    # beta = .1. Row 1: -.1 * .5 = -.05; -.1 * -.2 = .02; -.1 * .3 + 1 = .97.
    # Row 2 has one token, its first and its last: -.1 * 1 - 2 = -2.1.
    kl = np.array([[0.5, -0.2, 0.3], [1.0, NONSENSE, NONSENSE]])
    rewards = ppo.token_rewards(np.array([1.0, -2.0]), kl, RAGGED, 0.1)
    close(rewards, [[-0.05, 0.02, 0.97], [-2.1, 0, 0]])


def test_advantages_and_returns_by_hand(ppo):
    # gamma = .9, lambda = .8, their product .72; the value after the last token is 0.
    # delta_3 = .97 + .9 * 0 - .1 = .87             A_3 = .87
    # delta_2 = .02 + .9 * .1 - .4 = -.29           A_2 = -.29 + .72 * .87 = .3364
    # delta_1 = -.05 + .9 * .4 - .2 = .11           A_1 = .11 + .72 * -.29 + .5184 * .87 = .352208
    # Row 2: A = -2.1 - .5 = -2.6. Returns are A + V: .552208, .7364, .97; -2.1.
    rewards = np.array([[-0.05, 0.02, 0.97], [-2.1, NONSENSE, NONSENSE]])
    values = np.array([[0.2, 0.4, 0.1], [0.5, NONSENSE, NONSENSE]])
    advantages, returns = ppo.gae(rewards, values, RAGGED, 0.9, 0.8)
    close(advantages, [[0.352208, 0.3364, 0.87], [-2.6, 0, 0]])
    close(returns, [[0.552208, 0.7364, 0.97], [-2.1, 0, 0]])


def test_whitening_by_hand(ppo):
    # Mean (1 + 2 + 3 + 6) / 4 = 3; squares 4 + 1 + 0 + 9 = 14; unbiased variance 14 / 3.
    advantages = np.array([[1.0, 2.0, 3.0], [6.0, NONSENSE, NONSENSE]])
    root = math.sqrt(14 / 3 + 1e-8)
    close(ppo.whiten(advantages, RAGGED), [[-2 / root, -1 / root, 0], [3 / root, 0, 0]])


def test_whitening_adds_its_epsilon_to_the_variance(ppo):
    # Two numbers 1e-4 from their mean: variance (1e-8 + 1e-8) / 1 = 2e-8; root of 3e-8.
    found = ppo.whiten(np.array([[1e-4, -1e-4]]), np.array([[1, 1]]))
    close(found, [[1e-4 / math.sqrt(3e-8), -1e-4 / math.sqrt(3e-8)]])


def test_equal_advantages_whiten_to_nothing(ppo):
    close(ppo.whiten(np.array([[2.0, 2.0, 2.0], [2.0, 0.0, 0.0]]), RAGGED), np.zeros((2, 3)))


def test_value_loss_by_hand(ppo):
    # c = .2. Token 1: v = 1 is cut to .7: max((1 - 2)^2, (.7 - 2)^2) = max(1, 1.69) = 1.69.
    # Token 2: v = .5 lies in .25 to .65: (.5 - .4)^2 = .01.
    # Token 3: v = -.3 is cut to .2: max(.09, .04) = .09. Token 4: on its return: 0.
    # Half the mean: (1.69 + .01 + .09 + 0) / 4 / 2 = .22375.
    loss = ppo.value_loss(
        np.array([[1.0, 0.5, -0.3], [0.5, NONSENSE, NONSENSE]]),
        np.array([[0.5, 0.45, 0.4], [0.5, 0.0, 0.0]]),
        np.array([[2.0, 0.4, 0.0], [0.5, 0.0, 0.0]]),
        RAGGED,
        0.2,
    )
    close(loss, 0.22375)


def test_policy_loss_by_hand(ppo):
    # epsilon = .2. Ratio 1.5, A = 1: min(1.5, 1.2) = 1.2.   Ratio 1.5, A = -1: min(-1.5, -1.2) = -1.5.
    # Ratio .5, A = 1: min(.5, .8) = .5.                     Ratio .5, A = -1: min(-.5, -.8) = -.8.
    # Loss -(1.2 - 1.5 + .5 - .8) / 4 = .15.
    ratios = np.array([[1.5, 1.5, 0.5], [0.5, NONSENSE, NONSENSE]])
    advantages = np.array([[1.0, -1.0, 1.0], [-1.0, NONSENSE, NONSENSE]])
    loss = ppo.policy_loss(np.log(ratios) - 2, np.full((2, 3), -2.0), advantages, RAGGED, 0.2)
    close(loss, 0.15)


def test_reference_metrics_by_hand():
    # Entropy of (1/2, 1/4, 1/4): 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2; of one sure token: 0.
    logits = np.array([[[0.0, math.log(0.5), math.log(0.5)], [0.0, -1e4, -1e4]]])
    close(reference.entropy(logits, np.array([[1, 0]])), 1.5 * math.log(2))
    close(reference.entropy(logits, np.array([[1, 1]])), 0.75 * math.log(2))
    # Returns 1, 2, 3 have variance 1; errors 0, 0, -1 have ((1 + 1 + 4) / 9) / 2 = 1/3.
    returns, mask = np.array([[1.0, 2.0, 3.0, 0.0]]), np.array([[1, 1, 1, 0]])
    close(reference.explained_variance(np.array([[1.0, 2.0, 4.0, 9.0]]), returns, mask), 2 / 3)
    close(reference.explained_variance(np.array([[5.0, 5.0, 5.0, 9.0]]), returns, mask), 0)
    # Clipped: of the four tokens above, the first and the last. Values: the first alone.
    ratios, signs = np.log([[1.5, 1.5, 0.5, 0.5]]), np.array([[1.0, -1.0, 1.0, -1.0]])
    assert reference.policy_loss(ratios, ratios * 0, signs, np.ones((1, 4)), 0.2)[1] == 0.5
    value, old, back = np.array([[1.0, 0.5]]), np.array([[0.5, 0.45]]), np.array([[2.0, 0.4]])
    assert reference.value_loss(value, old, back, np.ones((1, 2)), 0.2)[1] == 0.5


# The reference, on random ragged batches.


@st.composite
def batches(draw):
    """Random tensors of one rollout, by name: completions of 0 to 12 tokens, some with a tool's words."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(int)
    if draw(st.booleans()):
        mask *= generator.random(mask.shape) < 0.7
    assume(mask.sum() > 1)
    names = ("logprobs", "ref", "values", "new", "new_values", "rewards")
    return SimpleNamespace(
        mask=mask,
        scores=generator.normal(0, 3, len(lengths)),
        **{name: generator.normal(0, 0.5, mask.shape) for name in names},
    )


unit = st.floats(0, 1)


@given(batches(), unit)
def test_rewards_equal_the_reference(batch, beta):
    kl = batch.logprobs - batch.ref
    expected = reference.token_rewards(batch.scores, kl, batch.mask, beta)
    close(Ours.token_rewards(batch.scores, kl, batch.mask, beta), expected)


@given(batches(), unit, unit)
def test_advantages_and_returns_equal_the_reference(batch, gamma, lam):
    inputs = (batch.rewards, batch.values, batch.mask, gamma, lam)
    expected, returns = reference.gae(*inputs)
    found = Ours.gae(*inputs)
    close(found[0], expected)
    close(found[1], returns)
    close(reference.gae_of_n_step_estimates(*inputs), expected)


@given(batches())
def test_whitening_equals_the_reference(batch):
    close(Ours.whiten(batch.rewards, batch.mask), reference.whiten(batch.rewards, batch.mask))


def test_a_single_token_whitens_to_nothing():
    close(Ours.whiten(np.array([[3.0, NONSENSE]]), np.array([[1, 0]])), [[0, 0]])


@given(batches())
def test_what_is_logged_equals_the_reference(batch):
    kl, mask = batch.logprobs - batch.ref, batch.mask
    measured = trainer()
    measured.note_rollout(
        "train", *tensors(batch.rewards * mask, batch.values, batch.new_values, kl, mask)
    )
    log = {name: logged[0] for name, logged in measured._metrics["train"].items()}
    explained = reference.explained_variance(batch.values, batch.new_values, mask)
    close(log["value/explained_variance"], explained, 1e-6)
    close(log["kl"], reference.mean(reference.chosen(kl, mask)))
    close(log["returns/mean"], reference.mean(reference.chosen(batch.new_values, mask)))


@given(batches(), unit)
def test_losses_equal_the_reference(batch, clip):
    inputs = (batch.new_values, batch.values, batch.rewards, batch.mask, clip)
    close(Ours.value_loss(*inputs), Reference.value_loss(*inputs))
    inputs = (batch.new, batch.logprobs, batch.rewards, batch.mask, clip)
    close(Ours.policy_loss(*inputs), Reference.policy_loss(*inputs))


# TRL 1.12's own numbers. It gives the score one token after the last, where there is room, and keeps
# the value there: ONE_MORE is its mask for rewards, GAE and the value loss, REAL that of the policy
# loss and of whitening. Beyond that its conventions are ours, over one process.

REAL, ONE_MORE = (1 - ROLLOUT[name].astype(int) for name in ("padding_mask", "padding_mask_p1"))


def test_record_holds_the_cases():
    tokens, room = REAL.sum(1), ONE_MORE.sum(1)
    assert sorted(tokens) == [1, 3, 4, 7, 8, 8]
    assert (room == np.minimum(tokens + 1, REAL.shape[1])).all()
    assert {bool(found["pg_clipfrac"]) for found in MINIBATCHES} == {True, False}
    assert {bool(found["vf_clipfrac"]) for found in MINIBATCHES} == {True, False}
    ended = (ROLLOUT["responses"] == 1).any(1)
    lost = ROLLOUT["scores_before_penalty"] - ROLLOUT["scores"]
    close(lost, np.where(ended, 0, SETTINGS["missing_eos_penalty"]))


def test_recorded_rewards(ppo):
    kl = reference.per_token_kl(ROLLOUT["logprobs"], ROLLOUT["ref_logprobs"], REAL)
    close(kl, ROLLOUT["kl"])
    rewards = ppo.token_rewards(ROLLOUT["scores"], kl, ONE_MORE, SETTINGS["kl_coef"])
    close(rewards, ROLLOUT["rewards"])


def test_recorded_advantages_and_returns(ppo):
    settings = SETTINGS["gamma"], SETTINGS["lam"]
    advantages, returns = ppo.gae(ROLLOUT["rewards"], ROLLOUT["values"], ONE_MORE, *settings)
    close(advantages, ROLLOUT["advantages_before_whitening"])
    close(returns, ROLLOUT["returns"])


def test_recorded_whitening(ppo):
    found = ppo.whiten(ROLLOUT["advantages_before_whitening"], REAL)
    close(found, ROLLOUT["advantages"], 1e-7)  # TRL's factor n / (n - 1) is a float32


@pytest.mark.parametrize("found", MINIBATCHES, ids=range(len(MINIBATCHES)))
def test_recorded_losses(ppo, found):
    rows, clip = found["micro_batch_inds"], SETTINGS["cliprange"]
    new, old = np.array(found["new_logprobs"]), ROLLOUT["logprobs"][rows]
    policy = ppo.policy_loss(new, old, ROLLOUT["advantages"][rows], REAL[rows], clip)
    values, returns = ROLLOUT["values"][rows], ROLLOUT["returns"][rows]
    clip = SETTINGS["cliprange_value"]
    value = ppo.value_loss(np.array(found["vpred"]), values, returns, ONE_MORE[rows], clip)
    close(policy, found["pg_loss"])
    close(value, found["vf_loss"])
    close(policy + SETTINGS["vf_coef"] * value, found["loss"])


@pytest.mark.parametrize("found", MINIBATCHES, ids=range(len(MINIBATCHES)))
def test_recorded_clip_fractions(found):
    rows, names = found["micro_batch_inds"], ("logprobs", "advantages", "values", "returns")
    old, advantages, values, returns = (ROLLOUT[name][rows] for name in names)
    new, clip = np.array(found["new_logprobs"]), SETTINGS["cliprange"]
    single = 1e-6  # TRL counts them in float32
    policy = reference.policy_loss(new, old, advantages, REAL[rows], clip)[1]
    close(policy, found["pg_clipfrac"], single)
    vpred, clip = np.array(found["vpred"]), SETTINGS["cliprange_value"]
    value = reference.value_loss(vpred, values, returns, ONE_MORE[rows], clip)[1]
    close(value, found["vf_clipfrac"], single)
