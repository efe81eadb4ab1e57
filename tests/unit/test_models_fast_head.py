"""Log-probabilities and their gradients, as TRL computes them."""

import pytest
import torch
from trl.kernels import ChunkedLogProbFunction

from tests.closeness import assert_close
from toolkit.models.fast import head

N, H, V = 23, 16, 97
OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def given(seed: int = 0):
    torch.manual_seed(seed)
    hidden = torch.randn(N, H, requires_grad=True)
    weight = torch.randn(V, H)
    return hidden, weight, torch.randint(0, V, (N,)), torch.randn(N)


@pytest.fixture(autouse=True, params=[1, 2 * V, head.STRIP])
def small_tiles(request, monkeypatch):
    monkeypatch.setattr(head, "TILE", 5 * V)  # so that there are several
    monkeypatch.setattr(head, "STRIP", request.param)


def ours(hidden, weight, targets, settings, outputs=OUTPUTS, rows=None, index=None):
    return head.LabelLogProbs.apply(hidden, weight, rows, index, targets, *settings, outputs)


def theirs(hidden, weight, targets, settings, outputs=OUTPUTS):
    temperature, softcap, scale = settings
    return ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, temperature, 40, softcap, scale, outputs
    )


def assert_alike(one, other) -> None:
    """As shares of the whole gradient."""
    assert_close(one / other.norm(), other / other.norm(), tolerance=1e-6)


SETTINGS = [(1.0, None, 1.0), (0.7, None, 1.0), (1.0, 3.0, 1.0), (1.3, 2.0, 0.5)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_numbers_and_gradients_are_those_of_trl(settings):
    hidden, weight, targets, wish = given()
    expected = theirs(hidden, weight, targets, settings)
    found = ours(hidden, weight, targets, settings)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert_close(one.detach().float(), other.detach().float(), tolerance=2e-5)
    assert_alike(*(torch.autograd.grad(said[0] @ wish, hidden)[0] for said in (found, expected)))


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_loss_with_entropies_has_their_gradient_too(settings):
    hidden, weight, targets, wish = given(1)
    slopes = [
        torch.autograd.grad(said[0] @ wish + said[1].square().sum(), hidden)[0]
        for said in (
            ours(hidden, weight, targets, settings),
            theirs(hidden, weight, targets, settings),
        )
    ]
    assert_alike(*slopes)


@pytest.mark.parametrize("entropy", [False, True])
def test_rows_of_added_tokens_learn_as_in_a_head_that_is_trained_whole(entropy):
    hidden, weight, targets, wish = given(2)
    index = torch.tensor([3, 90])
    targets[:4] = index[0]
    rows = weight[index].clone().requires_grad_()
    whole = weight.clone().requires_grad_()

    def loss(said):
        return said[0] @ wish + (said[1].sum() if entropy else 0)

    found = loss(ours(hidden, weight, targets, SETTINGS[1], rows=rows, index=index))
    expected = loss(theirs(hidden, whole, targets, SETTINGS[1]))
    one, own = torch.autograd.grad(found, (hidden, rows))
    other, of_whole = torch.autograd.grad(expected, (hidden, whole))
    assert_alike(one, other)
    assert_alike(own, of_whole[index])


def test_under_autocast_it_rounds_no_more_than_trl():
    hidden, weight, targets, wish = given(3)
    exact = torch.autograd.grad(theirs(hidden, weight, targets, SETTINGS[0])[0] @ wish, hidden)[0]
    with torch.autocast("cpu", torch.bfloat16):
        said = [run(hidden, weight, targets, SETTINGS[0]) for run in (ours, theirs)]
    assert_close(
        said[0][0].detach(), said[1][0].detach(), tolerance=1e-6
    )  # logits are rounded alike
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert_close(
        said[0][1].detach(), entropy.detach(), tolerance=1e-4
    )  # of them, not rounded again
    off = [(torch.autograd.grad(each[0] @ wish, hidden)[0] - exact).norm() for each in said]
    assert off[0] <= 1.5 * off[1]


def test_what_is_not_asked_for_is_not_given():
    hidden, weight, targets, _ = given()
    with torch.no_grad():
        said = ours(hidden, weight, targets, SETTINGS[0], outputs=())
    assert said[1:] == (None, None, None, None)
    assert said[0].grad_fn is None


def test_no_tokens_are_no_error():
    hidden, weight, targets, _ = given()
    said = ours(hidden[:0], weight, targets[:0], SETTINGS[0])
    said[0].sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()
