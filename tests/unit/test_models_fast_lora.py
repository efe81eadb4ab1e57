"""A LoRA layer that adds its update in place gives what PEFT's gives, and leaves to PEFT what it does not know."""

import functools
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from tests.closeness import assert_close
from toolkit.models.fast.lora import add_in_place
from toolkit.models.fast.replaced import bring_back

KINDS = ("add", "add_", "mul", "mul_", "addmm_")
ROWS = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))


def network(kind=nn.Linear, bias=True, dtype=torch.float32, **keys):
    """A layer below an adapter that has learnt something."""
    torch.manual_seed(0)
    below = kind(12, 20, bias=bias) if kind is nn.Linear else kind(20, 12)
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], **keys)
    model = get_peft_model(nn.Sequential(below.to(dtype)), settings)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3)
    return model


def layer_of(model):
    return model.base_model.model[0]


def gone_through(model, context=None, **more):
    """The result, and the gradients of the rows and of what is trained."""
    model.zero_grad()
    rows = ROWS.to(layer_of(model).base_layer.weight.dtype).clone().requires_grad_()
    torch.manual_seed(7)  # of dropout
    with context or nullcontext():
        said = layer_of(model)(rows, **more)
    (said.float() * torch.linspace(-1, 1, said.numel()).view_as(said)).sum().backward()
    grads = [w.grad for w in model.parameters() if w.grad is not None]
    return [said.detach(), rows.grad, *(each.clone() for each in grads)]


def far(one, other):
    """The largest distance, as a share of the largest number."""
    assert len(one) == len(other)
    assert [each.shape for each in one] == [each.shape for each in other]
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max())
        for a, b in zip(one, other, strict=True)
    )


class Operations(TorchDispatchMode):
    """The names of the operations on floats, and how many numbers each gives."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        said = func(*args, **(kwargs or {}))
        if isinstance(said, torch.Tensor):
            self.found.append((func.overloadpacket._qualified_op_name, said.numel()))
        return said


@pytest.mark.parametrize(
    "keys",
    [{}, {"bias": False}, {"lora_dropout": 0.4}, {"use_rslora": True}],
    ids=["bias", "no bias", "dropout", "rslora"],
)
def test_result_and_gradients_are_those_of_peft(keys):
    model = network(**keys)
    theirs = gone_through(model)
    add_in_place(model)
    assert len(theirs) == 4
    assert far(gone_through(model), theirs) < 1e-6


@torch.no_grad()
def test_rows_that_are_not_in_one_piece_in_memory():
    model = network()
    rows = ROWS.transpose(0, 1)
    theirs = layer_of(model)(rows)
    add_in_place(model)
    assert_close(layer_of(model)(rows), theirs, tolerance=1e-6)
    assert_close(layer_of(model)(rows[0, 0]), theirs[0, 0], tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_as_near_to_float32_as_peft(dtype):
    model = network(dtype=dtype)
    layer_of(model).base_layer.float()
    exact = gone_through(model)
    layer_of(model).base_layer.to(dtype)
    found = []
    for fast in (False, True):
        if fast:
            add_in_place(model)
        found.append(gone_through(model, torch.autocast("cpu", torch.bfloat16)))
        assert found[-1][0].dtype is torch.bfloat16
    assert 0 < far(found[1], exact) <= 1.2 * far(found[0], exact)


def test_nothing_of_the_size_of_the_result_is_scaled_or_added():
    model = network(bias=False)
    passes = {}
    for fast in (False, True):
        if fast:
            add_in_place(model)
        rows = ROWS.clone().requires_grad_()
        with Operations() as seen:
            layer_of(model)(rows).sum().backward()
        whole = 3 * 5 * 20
        passes[fast] = [n for n, size in seen.found if size == whole and n.split("::")[1] in KINDS]
    assert sorted(passes[False]) == ["aten::add", "aten::mul", "aten::mul"]
    assert passes[True] == ["aten::addmm_"]


def two_adapters(model):
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])


LEFT = {
    "merged": lambda model: model.merge_adapter(),
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "two adapters": two_adapters,
    "another one": lambda model: setattr(layer_of(model), "_active_adapter", ["none"]),
}


@pytest.mark.parametrize("state", LEFT)
@torch.no_grad()
def test_what_is_not_one_adapter_beside_its_weight_is_left_to_peft(state):
    model = network()
    add_in_place(model)
    LEFT[state](model)
    with Operations() as seen:
        ours = layer_of(model)(ROWS)
    assert "aten::addmm_" not in dict(seen.found)
    bring_back(layer_of(model))
    assert_close(ours, layer_of(model)(ROWS), tolerance=1e-6)


@pytest.mark.parametrize(
    "keys",
    [{"use_dora": True}, {"lora_bias": True}, {"kind": Conv1D, "fan_in_fan_out": True},
     {"dtype": torch.bfloat16}],
    ids=["dora", "a bias of lora", "conv1d", "half precision without autocast"],
)  # fmt: skip
def test_other_layers_are_left_to_peft(keys):
    model = network(**keys)
    theirs = gone_through(model)
    add_in_place(model)
    with Operations() as seen:
        ours = gone_through(model)
    assert far(ours, theirs) == 0
    assert "aten::addmm_" not in dict(seen.found)


@torch.no_grad()
def test_rows_with_adapters_of_their_own_are_left_to_peft():
    model = network().eval()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    names = ["default", "other", "__base__"]
    theirs = layer_of(model)(ROWS, adapter_names=names)
    add_in_place(model)
    assert_close(layer_of(model)(ROWS, adapter_names=names), theirs, tolerance=1e-6)


def test_layers_of_other_kinds_keep_their_own():
    model = get_peft_model(
        nn.Sequential(nn.Embedding(9, 12), nn.Linear(12, 20)), LoraConfig(target_modules=["0", "1"])
    )
    add_in_place(model)
    assert "forward" not in vars(layer_of(model))
    assert "forward" in vars(model.base_model.model[1])


def test_it_is_taken_out_again():
    model = network()
    before = layer_of(model).forward
    add_in_place(model)
    assert layer_of(model).forward != before
    bring_back(layer_of(model))
    bring_back(layer_of(model))
    assert layer_of(model).forward == before
    assert "forward" not in vars(layer_of(model))


def test_a_forward_pass_that_somebody_else_has_put_there_is_brought_back():
    model = network()
    layer = layer_of(model)
    layer.forward = theirs = functools.partial(layer.forward)
    add_in_place(model)
    bring_back(layer)
    assert layer.forward is theirs
