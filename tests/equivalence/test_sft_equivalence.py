"""One training, many ways to compute it: each must give the same losses and the same adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file

import toolkit
from tests import tiny
from tests.closeness import assert_close
from tests.launch import two_processes

STEPS = 4


def trainer_of(base, directory, **keys):
    torch.manual_seed(0)
    settings = {
        "model_name_or_path": str(base),
        "train_dataset": tiny.ROWS,
        "output_dir": str(directory),
        "lora_r": 4,
        "lora_dropout": 0.0,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
    } | keys
    return toolkit.build("sft", **settings)


def trajectory(trainer):
    """Losses per step, and every trained tensor at the end."""
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            trained[name] = parameter.detach()
        else:
            assert torch.equal(parameter, before[name]), f"the base moved: {name}"
    assert any(not torch.equal(before[name], value) for name, value in trained.items())
    return losses, trained


def assert_same(one, other):
    assert_close(one[0], other[0], tolerance=1e-5)
    for name, value in one[1].items():
        assert_close(value, other[1][name], tolerance=1e-5, name=name)


@pytest.fixture(scope="module")
def canonical(tiny_base, tmp_path_factory):
    return trajectory(trainer_of(tiny_base, tmp_path_factory.mktemp("canonical")))


@pytest.mark.parametrize(
    "keys",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 2, "global_batch_size": 8},
        {"padding_free": True},
        {"gradient_checkpointing": False},
        {"attn_implementation": "eager", "padding_free": True},
    ],
    ids=lambda keys: " ".join(f"{key}={value}" for key, value in keys.items()),
)
def test_same_trajectory(keys, canonical, tiny_base, tmp_path):
    assert_same(canonical, trajectory(trainer_of(tiny_base, tmp_path, **keys)))


def test_packed_is_padded(tiny_base, tmp_path):
    """One step over all rows: packing changes the order, so only a whole epoch compares."""
    keys = {"max_steps": 1, "max_length": 256}
    padded = trainer_of(tiny_base, tmp_path / "a", per_device_train_batch_size=24, **keys)
    packed = trainer_of(
        tiny_base, tmp_path / "b", packing=True, per_device_train_batch_size=24, **keys
    )
    assert len(packed.train_dataset) < len(padded.train_dataset)
    assert_same(trajectory(padded), trajectory(packed))


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
def test_packing_that_goes_on_in_the_next_block_loses_no_label(strategy, tiny_base, tmp_path):
    keys = {"packing": True, "max_length": 64, "packing_strategy": strategy}
    blocks = trainer_of(tiny_base, tmp_path / "a", **keys).train_dataset
    whole = trainer_of(tiny_base, tmp_path / "b").train_dataset

    def labels(rows):
        return sorted(label for row in rows["labels"] for label in row if label != -100)

    assert max(map(len, blocks["labels"])) == 64 < max(map(len, whole["labels"]))
    assert labels(blocks) == labels(whole)


def one_step(trainer):
    """The loss of all rows in one batch, and the gradient of every trained tensor."""
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"] != -100).sum()  # no label is the first of its row
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    loss.backward()
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


@pytest.mark.parametrize("keys", [{"packing": True}, {"padding_free": True}], ids=str)
def test_same_loss_and_gradients(keys, tiny_base, tmp_path):
    common = {"max_length": 256, "per_device_train_batch_size": 24}
    loss, gradients = one_step(trainer_of(tiny_base, tmp_path / "a", **common))
    other_loss, others = one_step(trainer_of(tiny_base, tmp_path / "b", **common, **keys))
    assert_close([loss], [other_loss], tolerance=1e-5)
    assert gradients.keys() == others.keys()
    assert any(float(value.abs().max()) > 1e-3 for value in gradients.values())
    for name, value in gradients.items():
        assert_close(value, others[name], tolerance=1e-5, name=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_token_attends_into_another_row(attention, tiny_base, tmp_path):
    trainer = trainer_of(
        tiny_base, tmp_path, packing=True, max_length=256, attn_implementation=attention
    )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 1, "the batch must hold two rows"
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        before = trainer.model(**inputs).logits[0]
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][0, : starts[1]] = 7  # row A becomes another text
        after = trainer.model(**inputs).logits[0]
    assert not torch.allclose(before[: starts[1]], after[: starts[1]])
    assert torch.equal(before[starts[1] :], after[starts[1] :])


WORDS = {
    "lora_r": 4, "lora_dropout": 0.0, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
    "global_batch_size": 8, "logging_steps": 1, "save_strategy": "no", "seed": 3,
}  # fmt: skip


def on_two_processes(base, directory, **keys):
    """What two processes print, the adapter that they leave, and its metrics."""
    words = WORDS | {"model_name_or_path": base, "output_dir": directory} | keys
    printed = two_processes("sft", *(w for k, v in words.items() for w in (f"--{k}", v)))
    manifest = json.loads((directory / "stage.json").read_text())
    return printed, load_file(directory / "adapter_model.safetensors"), manifest["metrics"]


def test_two_processes_are_one(canonical, tiny_base, tmp_path):
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS)
    printed, saved, _ = on_two_processes(
        tiny_base, tmp_path / "out", dataset_name=rows, max_steps=STEPS
    )
    assert printed.count("━━ sft") == 1, "only the first process may print"
    for name, value in canonical[1].items():
        key = name.replace(".default", "")
        assert_close(saved[key], value, tolerance=1e-5, name=key)


@pytest.mark.parametrize("keys", [{}, {"packing": True, "max_length": 256}], ids=str)
def test_two_processes_are_one_where_rows_do_not_divide(keys, tiny_base, tmp_path):
    """21 rows in batches of 8, held out 5: nothing is trained twice, nothing counted twice."""
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.ROWS[:21])
    held_out = tiny.save_rows(tmp_path / "held_out.jsonl", tiny.ROWS[19:])
    keys = keys | {"num_train_epochs": 2, "per_device_eval_batch_size": 2}
    one = toolkit.sft(
        model_name_or_path=str(tiny_base), dataset_name=str(rows), output_dir=str(tmp_path / "one"),
        eval_dataset=tiny.ROWS[19:], **WORDS, **keys,
    )  # fmt: skip
    folder = tmp_path / "folder"
    folder.mkdir()
    rows.rename(folder / "train.jsonl")
    held_out.rename(folder / "test.jsonl")
    _, saved, metrics = on_two_processes(
        tiny_base, tmp_path / "two", dataset_name=folder, eval_strategy="epoch", **keys
    )
    expected = load_file(one.output_dir / "adapter_model.safetensors")
    for key, value in expected.items():
        assert_close(saved[key], value, tolerance=1e-5, name=key)
    assert metrics["steps"] == one.metrics["steps"]
    for key in ("loss", "train_loss", "eval_loss"):
        assert_close([metrics[key]], [one.metrics[key]], tolerance=1e-5, name=key)


@pytest.mark.parametrize("keys", [{}, {"packing": True, "max_length": 256}, {"padding_free": True}])
def test_the_held_out_loss_is_the_mean_over_tokens(keys, tiny_base, tmp_path):
    """TRL's own is a mean of the means of batches, 6.25 to 6.30 here, by the batch size alone."""
    found = []
    for size in (1, 2, 6):
        trainer = trainer_of(
            tiny_base, tmp_path / str(size), eval_dataset=tiny.ROWS[:9],
            per_device_eval_batch_size=size, **keys,
        )  # fmt: skip
        found.append(trainer.evaluate()["eval_loss"])
    assert_close(found[:1] * 2, found[1:], tolerance=1e-5)
    summed, tokens = 0.0, 0
    alone = trainer_of(tiny_base, tmp_path / "alone", eval_dataset=tiny.ROWS[:9])
    for row in alone.eval_dataset:
        labels = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = alone.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        summed += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    assert_close([found[0]], [summed / tokens], tolerance=1e-5)
