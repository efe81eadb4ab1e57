"""Which adapter a forward pass goes through, also when checkpointing runs a layer again."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests import tiny_ppo
from tests.closeness import assert_close
from toolkit.models.heads import add_scalar_heads
from toolkit.models.switching import adapter_weights, checkpoint_through, through, train_only
from toolkit.models.value import VALUE, add_value_adapter, value_weights

pytestmark = tiny_ppo.quiet
IDS = torch.tensor([[5, 6, 7, 258, 9, 10, 257], [259, 259, 11, 12, 258, 5, 257]])
MASK = (IDS != 259).long()


def with_value(base, **keys) -> Any:
    """A policy and, different from it, a critic."""
    model, _ = tiny_ppo.policy(base, lora_dropout=0.0, **keys)
    add_scalar_heads(model)
    add_value_adapter(model)
    train_only(model, value_weights(model))
    tiny_ppo.stir(model, 0.05)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_pass_goes_through_the_adapter_named(head, tiny_base, untied_base):
    model = with_value(tiny_base if head == "tied" else untied_base)
    train_only(model, [*value_weights(model), *adapter_weights(model, "default").values()])
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    policy = logits(model)
    with through(model, VALUE):
        value = logits(model)
        with through(model, "default"):
            assert torch.equal(logits(model), policy)
        assert torch.equal(logits(model), value)
    assert torch.equal(logits(model), policy)
    assert trained == [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert not torch.allclose(policy, value, atol=1e-2)
    model.set_adapter(VALUE)
    assert torch.equal(logits(model), value)  # as PEFT itself does it


def test_an_exception_leaves_the_way_as_it_was(tiny_base):
    model = with_value(tiny_base)
    policy = logits(model)
    with pytest.raises(KeyError), through(model, VALUE):
        raise KeyError
    assert torch.equal(logits(model), policy)


def test_a_layer_without_the_adapter_is_the_bases(tiny_base):
    model, _ = tiny_ppo.policy(tiny_base, lora_dropout=0.0)
    model.add_adapter("small", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with through(model, "small"):
        small = logits(model)
    model.set_adapter("small")
    assert torch.equal(logits(model), small)
    with through(model, "nobody"):
        nobody = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), nobody)


class Attention(nn.Module):
    """A module that has a layer of the critic's name, as BERT's attention has."""

    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.query(x) + self.value(x)


def test_a_layer_called_value_is_not_taken_for_the_critic():
    model: Any = get_peft_model(
        Attention(),
        LoraConfig(r=2, target_modules=["query", "value"]),  # pyright: ignore
    )
    model.add_adapter("value", LoraConfig(r=2, target_modules=["query", "value"]))
    ours, theirs = adapter_weights(model, "value"), adapter_weights(model, "default")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4
    assert not {id(weight) for weight in ours.values()} & {id(weight) for weight in theirs.values()}
    train_only(model, ours.values())
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(names) == 4
    assert all(name.endswith(".value.weight") for name in names)


# Gradient checkpointing.


def gradients(base, checkpointing: dict[str, Any] | None, remembered: int = 1) -> Any:
    """Of one step in which both adapters take part, by parameter."""
    model = with_value(base)
    train_only(model, [*value_weights(model), *adapter_weights(model, "default").values()])
    for _ in range(remembered):
        checkpoint_through(model)
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.get_base_model().activation_checkpointing_enable(**checkpointing)
    model.train()
    said = model(input_ids=IDS, attention_mask=MASK).logits.log_softmax(-1)
    scalars = model(input_ids=IDS, attention_mask=MASK, scalar_head=VALUE)
    (said[..., 7].mean() + (scalars**2).mean()).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


REENTRANT = [{"use_reentrant": False}, {"use_reentrant": True}]


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("kwargs", REENTRANT, ids=str)
def test_checkpointing_changes_no_gradient(kwargs, head, tiny_base, untied_base):
    base = tiny_base if head == "tied" else untied_base
    expected = gradients(base, None)
    assert {tiny_ppo.role(name) for name in expected} == {"default", VALUE}
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    found = gradients(base, {"activation_checkpointing_kwargs": kwargs})
    for name, gradient in expected.items():
        assert_close(found[name], gradient, tolerance=1e-7, name=name)


def test_checkpointing_some_layers_changes_none_either(tiny_base):
    expected, found = gradients(tiny_base, None), gradients(tiny_base, {"every_n_layers": 2})
    for name, gradient in expected.items():
        assert_close(found[name], gradient, tolerance=1e-7, name=name)


@pytest.mark.parametrize("kwargs", REENTRANT, ids=str)
def test_unremembered_the_critics_gradients_are_lost(kwargs, tiny_base):
    """What `checkpoint_through` is there for: the second run would go through the policy."""
    expected = gradients(tiny_base, None)
    given = {"activation_checkpointing_kwargs": kwargs}
    try:
        found = gradients(tiny_base, given, remembered=0)
    except RuntimeError:  # torch noticed that the second run was another
        return
    lost = [n for n, g in expected.items() if found[n] is None or not torch.allclose(found[n], g)]
    assert any(tiny_ppo.role(name) == VALUE for name in lost)


@pytest.mark.parametrize("kwargs", [None, *REENTRANT], ids=str)
def test_a_trainer_gives_the_same_with_and_without(kwargs, untied_base, tmp_path):
    found = []
    for checkpointing in (False, True):
        model, words = tiny_ppo.policy(untied_base)
        trainer = tiny_ppo.trainer(
            model, words, tmp_path, rollout_func=tiny_ppo.fixed(words), beta=0.1,
            activation_checkpointing=checkpointing, activation_checkpointing_kwargs=kwargs,
            optim="sgd", max_steps=3,
        )  # fmt: skip
        before = tiny_ppo.held(trainer.model)
        trainer.train()
        assert tiny_ppo.moved(before, trainer.model)["default"] == "all"
        assert tiny_ppo.moved(before, trainer.model)[VALUE] == "all"
        found.append(tiny_ppo.held(trainer.model))
    for name, weight in found[0].items():
        assert_close(found[1][name], weight, tolerance=1e-6, name=name)


def test_checkpointing_twice_over_is_checkpointing_once(tiny_base):
    """A base that was lent before has been made to remember before."""
    expected = gradients(tiny_base, None)
    found = gradients(tiny_base, {}, remembered=2)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, tolerance=1e-7, name=name)
