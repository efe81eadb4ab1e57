"""Copies of an adapter beside it: every tensor, the trained rows of added tokens too."""

import pytest
import torch

from tests.unit.test_models_adapters import PROBE, attached
from toolkit.models.copies import added_as_copies, copy_adapter
from toolkit.models.proof import log_probabilities


def moved(base, **keys):
    """An adapter that has learnt something, in every tensor that is trained."""
    torch.manual_seed(1)
    model, _ = attached(base, **keys)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def numbers_of(model, adapter):
    model.set_adapter(adapter)
    found = log_probabilities(model, PROBE)
    model.set_adapter("default")
    return found


@pytest.mark.parametrize(
    ("head", "keys"),
    [
        ("tied", {}),
        ("untied", {}),
        ("tied", {"use_dora": True}),
        ("untied", {"lora_modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
    ids=str,
)
def test_an_added_adapter_is_an_exact_copy(head, keys, tiny_base, untied_base):
    model = moved(tiny_base if head == "tied" else untied_base, **keys)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with added_as_copies(model):
        model.add_adapter("ref", model.peft_config["default"])
    assert "add_adapter" not in vars(model)
    assert model.peft_config["ref"] is not model.peft_config["default"]
    for one, other in zip(numbers_of(model, "default"), numbers_of(model, "ref"), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in before.items())
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert not any(".ref" in name for name in trained)
    with torch.no_grad():
        for name in trained:
            model.get_parameter(name).add_(0.1)
    assert not torch.equal(numbers_of(model, "default")[0], numbers_of(model, "ref")[0])


def test_the_copy_of_upstream_is_none(tiny_base):
    """The day this fails, TRL copies rows too and `added_as_copies` can go."""
    model = moved(tiny_base)
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():  # as in TRL 1.16, dpo_trainer.py
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    one, other = numbers_of(model, "default"), numbers_of(model, "ref")
    assert float((one[0] - other[0]).abs().max()) > 1e-3


def test_a_copy_keeps_the_precision_of_its_source(tiny_base):
    model = moved(tiny_base)
    with added_as_copies(model):
        model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".ref" in name:
            parameter.data = parameter.data.bfloat16()
    copy_adapter(model, "default", "ref")
    assert torch.equal(numbers_of(model, "default")[1], numbers_of(model, "ref")[1])


def test_adapters_that_are_not_alike_are_no_copies(tiny_base):
    model = moved(tiny_base)
    with pytest.raises(ValueError, match=r"'default' cannot become a copy of 'none'"):
        copy_adapter(model, "none", "default")
    config = type(model.peft_config["default"])(r=4, target_modules=["q_proj"])
    model.add_adapter("small", config)
    with pytest.raises(ValueError, match="not the same ones"):
        copy_adapter(model, "small", "default")
