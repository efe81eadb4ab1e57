"""The proof: to the bit by tensor, by numbers, and of the critic; every fault is named."""

import json
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from tests import tiny_ppo
from tests.unit.test_models_adapters import PROBE, attached
from toolkit.errors import TrainingError
from toolkit.models import adapters, digests
from toolkit.models.heads import add_scalar_heads, save_scalar_adapter
from toolkit.models.proof import LOG_PROBABILITIES, Expected, compare, expect, prove
from toolkit.models.saved_files import check_files
from toolkit.models.value import VALUE, add_value_adapter

CPU = torch.device("cpu")


@pytest.fixture
def saved(tiny_base, tmp_path):
    """A folder with an adapter that differs from its base, and what it must give."""
    torch.manual_seed(1)
    model, words = attached(tiny_base)
    tiny_ppo.stir(model, 0.05)
    model.save_pretrained(str(tmp_path))
    adapters.save_beside(model, words, tmp_path)
    return tmp_path, expect(model, PROBE, LOG_PROBABILITIES)


@pytest.fixture
def with_critic(tiny_base, tmp_path):
    """A policy with its critic, saved as PPO does, and what they must give."""
    model, words = tiny_ppo.policy(tiny_base)
    add_scalar_heads(model)
    add_value_adapter(model)
    tiny_ppo.stir(model, 0.1, VALUE)
    model.save_pretrained(str(tmp_path), selected_adapters=["default"])
    save_scalar_adapter(model, VALUE, tmp_path / VALUE)
    words.save_pretrained(tmp_path / VALUE)
    adapters.save_beside(model, words, tmp_path)
    return tmp_path, expect(model, PROBE, LOG_PROBABILITIES), model


def change(directory, how):
    """Change a file of weights: `how` takes its tensors and gives those to write."""
    path = directory / SAFETENSORS_WEIGHTS_NAME
    save_file(how(load_file(path)), path)


@pytest.mark.parametrize("of", [digests.digest, digests.fingerprint])
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (4, 6)])
def test_one_bit_is_seen_anywhere(of, place):
    weight = torch.randn(5, 7)
    before = of(weight)
    assert of(weight.clone()) == before
    weight[place] = torch.nextafter(weight[place], torch.tensor(9.0))
    assert of(weight) != before
    assert of(torch.ones(4)) != of(torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_the_fingerprint_of_an_accelerator_sees_what_cancels(dtype):
    ones = torch.ones(3, 4).to(dtype)
    zeros, shifted, one_more = torch.zeros_like(ones), ones.clone(), ones.clone()
    shifted[0, 0], shifted[0, 1] = 0, 2
    one_more[2, 3] = 2
    found = [digests.reduced(t) for t in (ones, ones.clone(), zeros, shifted, one_more)]
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert digests.reduced(torch.tensor(1.0)) != digests.reduced(torch.tensor(2.0))


def test_a_digest_sees_shape_order_and_bytes_but_no_precision():
    weight = torch.randn(4, 6).bfloat16()
    assert digests.digest(weight) == digests.digest(weight.float())
    assert digests.digest(weight) != digests.digest(weight.reshape(6, 4))
    assert digests.digest(weight) != digests.digest(weight.flip(0))
    packed = torch.arange(12, dtype=torch.uint8)
    assert digests.digest(packed) != digests.digest(packed + 1)
    assert digests.digest(torch.tensor(2.0)) != digests.digest(torch.tensor(3.0))


def test_what_was_saved_is_proved_tensor_by_tensor(saved):
    directory, expected = saved
    found = prove(directory, expected, device=CPU)
    assert found["tensors"] == len(load_file(directory / SAFETENSORS_WEIGHTS_NAME)) > 10
    assert found["largest_difference"] < 1e-5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "was trained and is missing"),
        ("empty", "holds no numbers"),
        ("more", "tensor another was never trained"),
        ("one bit", "is not what was trained"),
    ],
)
def test_a_tensor_that_is_not_what_was_trained_is_named(fault, said, saved):
    directory, expected = saved
    key = next(key for key in expected.tensors if "lora_B" in key)

    def damage(tensors):
        if fault == "missing":
            return {name: tensor for name, tensor in tensors.items() if name != key}
        if fault == "more":
            return tensors | {"another": torch.ones(1)}
        if fault == "empty":  # as a model leaves it whose weights other devices hold
            return tensors | {key: tensors[key][:0]}
        tensors[key][0, 0] = torch.nextafter(tensors[key][0, 0], torch.tensor(9.0))
        return tensors

    change(directory, damage)
    with pytest.raises(TrainingError, match=said) as error:
        prove(directory, expected, device=CPU)
    assert fault == "more" or key in str(error.value)


def test_a_loader_that_loads_something_else_is_noticed(saved):
    directory, expected = saved

    def spoiled(name, **kwargs):
        model = LOG_PROBABILITIES.load(name, **kwargs)
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "lora_B" in name).mul_(2)
        return model

    with pytest.raises(TrainingError, match="is not what was trained once it is loaded"):
        prove(directory, expected, device=CPU, check=replace(LOG_PROBABILITIES, load=spoiled))


def test_a_nan_is_never_passed_over(tmp_path):
    good, bad = torch.zeros(3), torch.tensor([0.0, torch.nan, 0.0])
    for found in ([bad, good], [good, bad]):
        with pytest.raises(TrainingError, match="differ by nan"):
            compare(tmp_path, "numbers", found, [good, good], 0.1)
    assert compare(tmp_path, "numbers", [torch.zeros(0)], [torch.zeros(0)], 0.1) == 0.0


def test_a_file_that_cannot_be_read_is_one_line(saved):
    directory, _ = saved
    (directory / SAFETENSORS_WEIGHTS_NAME).write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"adapter_model\.safetensors: cannot be read"):
        check_files(directory)


def test_what_is_expected_survives_the_disk_to_the_bit(with_critic):
    _, expected, _ = with_critic
    again = Expected.from_dict(json.loads(json.dumps(expected.as_dict())))
    assert again.probe == PROBE
    assert (again.tensors, again.value_tensors) == (expected.tensors, expected.value_tensors)
    assert all(map(torch.equal, again.numbers, expected.numbers))
    assert all(map(torch.equal, again.values or [], expected.values or []))
    with pytest.raises(TrainingError, match="cannot be repeated"):
        Expected.from_dict({"probe": [[1, 2]]})


def test_the_critic_is_proved_by_its_values(with_critic):
    directory, expected, _ = with_critic
    assert expected.values is not None
    assert [len(row) for row in expected.values] == [len(ids) for ids in PROBE]
    assert max(float(row.abs().max()) for row in expected.values) > 0.1
    found = prove(directory, expected, device=CPU)
    assert found["largest_difference_of_values"] < 1e-5
    plain = AutoPeftModelForSequenceClassification.from_pretrained(directory / VALUE, num_labels=1)
    with torch.no_grad():
        last = [float(plain(torch.tensor([ids])).logits) for ids in PROBE]
    assert last == pytest.approx([float(row[-1]) for row in expected.values], abs=1e-5)


@pytest.mark.parametrize("fault", ["head", "folder", "values"])
def test_a_damaged_critic_is_named(fault, with_critic):
    directory, expected, _ = with_critic
    head = "base_model.model.score.weight"
    if fault == "head":
        change(directory / VALUE, lambda tensors: tensors | {head: tensors[head] * 0})
    elif fault == "folder":
        (directory / VALUE / "adapter_config.json").unlink()
    else:
        expected.values = [row + 1 for row in expected.values]
    said = {"head": head, "folder": "value adapter was trained and is missing"}
    with pytest.raises(TrainingError, match=said.get(fault, "values differ by 1")):
        prove(directory, expected, device=CPU)


def test_a_resident_critic_leaves_no_trace(with_critic):
    directory, expected, model = with_critic
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    found = prove(directory, expected, device=CPU, resident=model)
    assert found["verified"] == "resident_base"
    assert set(model.peft_config) == {"default", VALUE} == {"default", *model.scalar_heads}
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before


def test_a_base_that_moved_and_an_adapter_that_did_not_are_named(with_critic):
    _, _, model = with_critic
    start = digests.start_of(model, ["default", VALUE])

    def unmoved():
        now = {name: digests.digests(digests.saved_tensors(model, name)) for name in start.trained}
        return digests.unmoved(start, now, model)

    assert digests.changed_base(start, model) is None
    assert unmoved() == "the adapter 'default'"
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B.default" in n)[0, 0] += 1
    assert unmoved() == "the adapter 'value'"
    with torch.no_grad():
        model.scalar_heads[VALUE].weight[0, 0] += 1
    assert unmoved() is None
    assert digests.changed_base(start, model) is None
    embedding = model.get_base_model().model.norm.weight
    with torch.no_grad():
        embedding[3] = torch.nextafter(embedding[3], torch.tensor(9.0))
    assert "1 weights of the base are not" in str(digests.changed_base(start, model))
    assert "model.norm.weight" in str(digests.changed_base(start, model))
