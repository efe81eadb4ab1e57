"""Stages with `fast` learn what they learn without it, and keep activations where there is room."""

import json
from collections import namedtuple

import pytest
import torch

import toolkit
from tests import tiny
from tests.preferences import PAIRS
from tests.tiny_ppo import odd, quiet
from toolkit.models.fast.switch import speed_up
from toolkit.stages import fast_path

pytestmark = quiet
COMMON = {
    "report_to": "none", "lora_r": 4, "lora_dropout": 0.0, "per_device_train_batch_size": 4, "seed": 3,
    "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2,
}  # fmt: skip
PROMPTS = [{"prompt": f"{'ab' * (index % 4)}{index}, and what then?"} for index in range(8)]
ROLLOUTS = {
    "train_dataset": PROMPTS, "reward_funcs": [odd], "max_completion_length": 6, "num_generations": 4,
    "beta": 0.1,
}  # fmt: skip
STAGES = {
    "sft": {"train_dataset": tiny.ROWS[:12]},
    "reward": {"train_dataset": PAIRS[:12]},
    "dpo": {"train_dataset": PAIRS[:12]},
    "grpo": ROLLOUTS,
    "ppo": ROLLOUTS,
}
Memory = namedtuple("Memory", "available")


def built(stage, base, place, **keys):
    given = COMMON | STAGES[stage] | {"model": str(base), "output_dir": str(place)} | keys
    return toolkit.build(stage, **given)


def of_a_batch(trainer, batches):
    """The loss of a step, and what it makes of the trained weights."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(
        trainer.model.train(), dict(batches[0]), num_items_in_batch=torch.tensor(5)
    )
    loss.backward()
    trained = [weight for weight in trainer.model.parameters() if weight.grad is not None]
    return loss.item(), torch.cat([weight.grad.flatten() for weight in trained])


def losses_of(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradients_are_those_without_it(stage, tiny_base, tmp_path):
    trainer = built(stage, tiny_base, tmp_path, fast=False)
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():  # a policy that has moved, so that the KL and its gradient are not 0
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight += 0.02 * torch.randn_like(weight)
    rows = next(iter(trainer.get_train_dataloader()))
    batches = [trainer._prepare_inputs(rows)]
    theirs = of_a_batch(trainer, batches)
    assert speed_up(trainer.model.get_base_model()) is None
    ours = of_a_batch(trainer, batches)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6, abs=1e-6)
    assert theirs[1].norm() > 0
    assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) <= 1e-5


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_the_curve_is_the_same(stage, tiny_base, tmp_path):
    curves = []
    for fast in (True, False):
        run = tmp_path / str(fast)
        getattr(toolkit, stage)(
            **COMMON | STAGES[stage],
            model=str(tiny_base), output_dir=str(run), fast=fast, max_steps=8,
        )  # fmt: skip
        curves.append(losses_of(run))
    assert len(curves[0]) == 8
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_on_where_an_adapter_is_trained(stage, tiny_base, tmp_path):
    on, off = (built(stage, tiny_base, tmp_path / str(fast), fast=fast) for fast in (True, False))
    assert "forward" in vars(on.model.get_base_model().model)
    assert "forward" not in vars(off.model.get_base_model().model)


def test_a_whole_model_is_trained_as_upstream_does(tiny_base, tmp_path):
    keys = {key: value for key, value in COMMON.items() if not key.startswith("lora")}
    trainer = toolkit.build(
        "sft",
        **keys | STAGES["sft"],
        model=str(tiny_base),
        output_dir=str(tmp_path),
        use_peft=False,
    )
    assert "forward" not in vars(trainer.model.model)


def test_why_it_is_not_done_is_told(tiny_base, tmp_path, capsys):
    built("sft", tiny_base, tmp_path, attn_implementation="eager")
    assert "fast: padding and positions without loss are computed too, because its attention" in (
        " ".join(capsys.readouterr().out.split())
    )


@pytest.mark.parametrize("stage", STAGES)
def test_activations_are_kept_where_they_fit(stage, tiny_base, tmp_path, monkeypatch):
    assert not built(stage, tiny_base, tmp_path / "a").args.gradient_checkpointing
    monkeypatch.setattr(fast_path.psutil, "virtual_memory", lambda: Memory(10_000))
    assert built(stage, tiny_base, tmp_path / "b").args.gradient_checkpointing
    for key in ("gradient_checkpointing", "activation_checkpointing"):
        written = built(stage, tiny_base, tmp_path / key, **{key: False})
        assert not written.args.activation_checkpointing


@pytest.fixture
def quick_in_bf16(monkeypatch):
    """A CPU with instructions for bfloat16, and a base that is large enough to gain by them."""
    monkeypatch.setattr(fast_path, "cpu_computes_bf16", lambda: True)
    monkeypatch.setattr(fast_path, "LARGE", 1000)


@pytest.mark.parametrize("stage", STAGES)
def test_it_rounds_to_bfloat16_where_that_is_faster(
    stage, tiny_base, tmp_path, quick_in_bf16, capsys
):
    gradients = []
    for keys in ({}, {"bf16": True}, {"bf16": False}):
        trainer = built(stage, tiny_base, tmp_path / str(keys), **keys)
        assert (trainer.accelerator.mixed_precision == "bf16") == keys.get("bf16", True)
        trainer.current_gradient_accumulation_steps = 1
        with torch.no_grad():
            for weight in trainer.model.parameters():
                if weight.requires_grad:
                    weight.fill_(0.01)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with trainer.accelerator.autocast():
            gradients.append(of_a_batch(trainer, [batch])[1])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])
    assert capsys.readouterr().out.count("bf16: true, which this CPU multiplies faster") == 1


@pytest.mark.parametrize(
    "keys",
    [{"fast": False}, {"bf16": False}, {"load_in_4bit": True}, {"use_peft": False, "lora_r": None}],
    ids=str,
)
def test_it_rounds_nowhere_else(keys, tiny_base, tmp_path, quick_in_bf16):
    keys = {
        key: value for key, value in (COMMON | STAGES["sft"] | keys).items() if value is not None
    }
    if "use_peft" in keys:
        del keys["lora_dropout"]
    trainer = toolkit.build("sft", **keys, model=str(tiny_base), output_dir=str(tmp_path))
    assert trainer.accelerator.mixed_precision == "no"


def test_a_small_base_and_another_cpu_do_not_round(tiny_base, tmp_path, monkeypatch):
    for able, large in ((True, 10**6), (False, 1000)):
        monkeypatch.setattr(fast_path, "cpu_computes_bf16", lambda able=able: able)
        monkeypatch.setattr(fast_path, "LARGE", large)
        trainer = built("sft", tiny_base, tmp_path / str(able))
        assert trainer.accelerator.mixed_precision == "no"


@pytest.mark.parametrize("stage", STAGES)
def test_kept_activations_are_not_computed_again(stage, tiny_base, tmp_path, monkeypatch):
    for memory, again in ((10_000, True), (10**12, False)):
        monkeypatch.setattr(fast_path.psutil, "virtual_memory", lambda m=memory: Memory(m))
        trainer = built(stage, tiny_base, tmp_path / str(memory), max_steps=1)
        trainer.train()
        layers = trainer.model.get_base_model().model.layers
        assert [layer.gradient_checkpointing for layer in layers] == [again] * len(layers)


def test_what_a_token_keeps_grows_with_the_layers(tmp_path):
    sizes = []
    for layers in (2, 4):
        base = tiny.save_base(tmp_path / str(layers), num_hidden_layers=layers)
        trainer = built("sft", base, tmp_path / "run")
        sizes.append(fast_path.bytes_per_token(trainer.model))
    assert 1.7 < sizes[1] / sizes[0] < 2.1


@pytest.mark.slow  # a compiler is at work
@pytest.mark.filterwarnings("ignore")  # which asks every tensor for its gradient
@pytest.mark.parametrize("fast", [True, False])
def test_torch_compile_learns_the_same(fast, tiny_base, tmp_path):
    curves = []
    for compiled in (True, False):
        run = tmp_path / str(compiled)
        keys = COMMON | STAGES["sft"] | {"model": str(tiny_base), "output_dir": str(run)}
        toolkit.sft(**keys, fast=fast, torch_compile=compiled, max_steps=4)
        curves.append(losses_of(run))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_what_is_saved_is_proved_to_the_bit(tiny_base, tmp_path):
    """The proof compares with upstream's own way, in which whoever loads the adapter computes."""
    result = toolkit.sft(
        **COMMON | STAGES["sft"], model=str(tiny_base), output_dir=str(tmp_path), max_steps=2
    )
    assert result.manifest["verification"]["largest_difference"] == 0
    assert result.manifest["mixed_precision"] == "no"


def test_what_was_computed_in_bfloat16_is_proved_to_the_bit(tiny_base, tmp_path, quick_in_bf16):
    result = toolkit.sft(
        **COMMON | STAGES["sft"], model=str(tiny_base), output_dir=str(tmp_path), max_steps=2
    )
    assert result.manifest["verification"]["largest_difference"] == 0
    assert result.manifest["mixed_precision"] == "bf16"


@pytest.mark.slow  # six hundred steps
@pytest.mark.parametrize("bf16", [False, True])
def test_over_200_steps_it_differs_less_than_another_seed(bf16, tiny_base, tmp_path):
    curves = {}
    for fast, seed in ((True, 3), (False, 3), (False, 4)):
        run = tmp_path / f"{fast}-{seed}"
        keys = COMMON | STAGES["sft"] | {"seed": seed, "learning_rate": 2e-3, "bf16": bf16}
        toolkit.sft(**keys, model=str(tiny_base), output_dir=str(run), fast=fast, max_steps=200)
        curves[fast, seed] = torch.tensor(losses_of(run))
    ours, theirs, another = curves.values()
    assert theirs[-1] < 0.7 * theirs[0]
    assert (ours - theirs).norm() < 0.2 * (another - theirs).norm()
