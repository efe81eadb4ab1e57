"""One base for all stages: loaded once, and as it was loaded whenever somebody gets it."""

import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import toolkit
from tests import tiny, tiny_ppo
from toolkit.models import kept, load
from toolkit.models.as_it_was import AsItWas
from toolkit.models.kept import classifier_over, printed
from toolkit.recipe import recipe_from_keywords
from toolkit.verification.verify import verify

pytestmark = tiny_ppo.quiet
CPU = torch.device("cpu")
FILE = "adapter_model.safetensors"


def tensor_bytes() -> int:
    """Of all tensors that Python can reach, each storage once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def is_plain(model):
    """Whether nothing is left on a base: no adapter, no hook, no other method, no gradient."""
    for module in model.modules():
        hooks = [v for k, v in vars(module).items() if "hooks" in k and k != "_require_grads_hooks"]
        assert not any(hooks), module
        assert not {"forward", "generate", "generate_batch"} & set(vars(module)), module
        assert "peft" not in type(module).__module__
        assert not getattr(module, "gradient_checkpointing", False)
    assert all(weight.grad is None for weight in model.parameters())
    return True


def pairs():
    return [
        {"prompt": [{"role": "user", "content": f"Question {n}"}],
         "chosen": [{"role": "assistant", "content": f"yes {n}"}],
         "rejected": [{"role": "assistant", "content": f"no, never {n}"}]}
        for n in range(8)
    ]  # fmt: skip


def questions():
    return [
        {"prompt": [{"role": "user", "content": f"Question {n}"}], "answer": "1"} for n in range(8)
    ]


EVERY_STAGE = """
model_name_or_path: {base}
output_dir: {out}
lora_r: 4
seed: 1
{keys}
stages:
  - {{stage: sft, dataset_name: {rows}/chats.jsonl, max_steps: 2, per_device_train_batch_size: 4,
      learning_rate: 1e-3}}
  - {{stage: reward, start_from: sft, dataset_name: {rows}/pairs.jsonl, max_steps: 2,
      per_device_train_batch_size: 4, logging_steps: 1, learning_rate: 1e-2}}
  - {{stage: dpo, start_from: sft, dataset_name: {rows}/pairs.jsonl, max_steps: 2,
      per_device_train_batch_size: 4, learning_rate: 1e-3}}
  - {{stage: grpo, start_from: sft, dataset_name: {rows}/questions.jsonl, max_steps: 1,
      per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 6, beta: 0.1,
      reward_funcs: ["adapter:reward"], learning_rate: 1e-3, loss_type: grpo}}
  - {{stage: ppo, start_from: sft, dataset_name: {rows}/questions.jsonl, max_steps: 2,
      per_device_train_batch_size: 4, max_completion_length: 6, num_iterations: 1,
      reward_funcs: ["adapter:reward"], value_start_from: "adapter:reward", learning_rate: 1e-3}}
  - {{stage: evaluate, name: exam, of: [base, sft, grpo, ppo], num_generations: 2,
      max_completion_length: 4, reward_funcs: ["adapter:reward"],
      tasks: [{{name: t, dataset_name: {rows}/exam.jsonl}}]}}
"""


def every_stage(tmp_path, base, *, keys=""):
    rows = tmp_path / "rows"
    rows.mkdir(exist_ok=True)
    tiny.save_rows(rows / "chats.jsonl", tiny.ROWS)
    tiny.save_rows(rows / "pairs.jsonl", pairs())
    tiny.save_rows(rows / "questions.jsonl", questions())
    tiny.save_rows(rows / "exam.jsonl", [{"question": "1+1?", "answer": "2"}])
    recipe = tmp_path / "every.yaml"
    recipe.write_text(EVERY_STAGE.format(base=base, out=tmp_path / "run", rows=rows, keys=keys))
    return recipe


@pytest.fixture
def watched(monkeypatch, probes_asked):
    """What happens in pipelines: loads from disk, and the base and memory after each stage."""
    seen = {"loads": [], "after": []}
    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):

        def counted(name, *args, upstream=auto.from_pretrained, **kwargs):
            seen["loads"].append(str(name))
            return upstream(name, *args, **kwargs)

        monkeypatch.setattr(auto, "from_pretrained", counted)
    give_back = kept.Keeper.give_back

    def noted(self):
        was_lent = self.held is not None and self.held.lent
        give_back(self)
        if was_lent:
            seen["after"].append((self.held.model, printed(self.held.model), tensor_bytes()))
            seen["plain"] = is_plain(self.held.model)
            seen["start"] = self.held.prints

    monkeypatch.setattr(kept.Keeper, "give_back", noted)
    return seen


def check_pipeline(tmp_path, base, watched, **given):
    before = tensor_bytes()
    result = toolkit.run(every_stage(tmp_path, base, **given))
    assert watched["loads"] == [str(base)]  # once, for seven stages and their proofs
    assert len({id(model) for model, _, _ in watched["after"]}) == 1
    assert all(prints == watched["start"] for _, prints, _ in watched["after"])
    assert watched["plain"]
    sizes = [size - before for _, _, size in watched["after"]]
    assert len(sizes) >= 15  # after every stage, and between training and proof
    assert max(sizes) <= 1.02 * min(sizes)
    folder = tmp_path / "run"
    trained = {
        name: load_file(folder / name / FILE) for name in ("sft", "reward", "dpo", "grpo", "ppo")
    }
    start = trained.pop("sft")
    assert any(value.abs().max() > 0 for key, value in start.items() if "lora_B" in key)
    for name, weights in trained.items():  # each continues the first, and has moved
        assert any((weights[key] != start[key]).any() for key in start if key in weights), name
    for name, stage in result.stages.items():
        if name != "exam":
            assert stage.manifest["verification"]["verified"] == "resident_base"
    return result


def test_qlora_in_every_stage_over_one_base(tmp_path, watched):
    """NF4 with double quantization: what is trained moves, the quantized base does not."""
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    given = "load_in_4bit: true\nbnb_4bit_quant_type: nf4\nuse_bnb_nested_quant: true"
    check_pipeline(tmp_path, base, watched, keys=given)
    model = watched["after"][-1][0]
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.quant_state.nested
    assert layer.weight.quant_state.quant_type == "nf4"
    # from outside, everything is loaded anew
    watched["loads"].clear()
    assert all(finding.passed for finding in verify(tmp_path / "run" / "reward"))
    assert watched["loads"] == [str(base)]


@pytest.mark.slow
def test_every_stage_over_one_base(tmp_path, untied_base, watched):
    check_pipeline(tmp_path, untied_base, watched)


def test_a_model_comes_back_as_it_was_put_together(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    held = {name: dict(vars(module)) for name, module in model.named_modules()}
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    start = AsItWas(model)
    model.resize_token_embeddings(300, mean_resizing=False)
    settings = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["norm"],
                          trainable_token_indices=[258, 299], task_type="CAUSAL_LM")  # fmt: skip
    adapted = get_peft_model(model, settings)
    adapted.get_input_embeddings().register_forward_hook(lambda *given: None)
    model.model.layers[0].register_full_backward_hook(lambda *given: None)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    model.forward, model.config.use_cache, model.config.pad_token_id = print, False, 9
    model.generation_config.eos_token_id = [1, 2]
    model.requires_grad_(True).train()
    model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)
    model.float()
    start.restore()
    assert model.state_dict().keys() == state.keys()
    for name, weight in model.state_dict().items():
        assert weight.dtype == state[name].dtype
        assert torch.equal(weight, state[name])
    for name, module in model.named_modules():
        now, then = vars(module), held[name]
        assert {k: v for k, v in now.items() if k != "config"} == {
            k: v for k, v in then.items() if k != "config"
        }
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert is_plain(model)
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_rows_of_a_grown_matrix_go(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    start = AsItWas(model)
    weight = model.get_input_embeddings().weight
    model.resize_token_embeddings(300, mean_resizing=False)
    assert model.get_input_embeddings().weight.shape[0] == 300
    start.restore()
    assert model.get_input_embeddings().weight is weight
    assert weight.shape[0] == 257
    assert (
        weight.untyped_storage().nbytes() == weight.numel() * 4
    )  # no larger one is kept behind it


@pytest.fixture
def keeper():
    told = []
    with kept.one_base(CPU, told.append) as keeper:
        keeper.told = told
        yield keeper


def base_of(folder, **keys):
    keys = {"model_name_or_path": str(folder), "dataset_name": "x.jsonl"} | keys
    return load.load_base(recipe_from_keywords("sft", **keys).stages[0])


def test_what_is_asked_for_again_is_not_loaded_again(tiny_base, untied_base, keeper):
    first = base_of(tiny_base)
    assert base_of(tiny_base) is not first  # it is lent, so another is loaded
    assert keeper.loads == 1
    keeper.give_back()
    assert base_of(tiny_base, dtype="float32") is first  # as its config says
    for changed in ({"dtype": "bfloat16"}, {"attn_implementation": "eager"}):
        keeper.give_back()
        other = base_of(tiny_base, **changed)
        assert other is not first
        assert keeper.held.model is other
    keeper.give_back()
    assert base_of(untied_base) is keeper.held.model
    keeper.give_back()
    base_of(tiny_base, use_peft=False)  # is trained itself
    assert keeper.held is None
    assert keeper.loads == 4


def test_another_quantization_is_another_base(tmp_path, keeper):
    base = tiny.save_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    for number, nested in enumerate((True, False)):
        base_of(base, load_in_4bit=True, bnb_4bit_quant_type="nf4", use_bnb_nested_quant=nested)
        keeper.give_back()
        assert keeper.loads == number + 1
    base_of(base, load_in_4bit=True, bnb_4bit_quant_type="nf4", use_bnb_nested_quant=False)
    assert keeper.loads == 2


def test_a_checkpoint_that_was_written_again_is_loaded_again(tmp_path, keeper):
    folder = tiny.save_base(tmp_path / "base")
    base_of(folder)
    keeper.give_back()
    tiny.save_base(folder, seed=1)
    base_of(folder)
    assert keeper.loads == 2


def test_a_base_that_changed_is_told_and_not_kept(tiny_base, keeper):
    model = base_of(tiny_base)
    model.model.norm.weight.data[0] += 1e-6
    keeper.give_back()
    assert keeper.held is None
    assert "model.norm.weight" in keeper.told[0]
    assert base_of(tiny_base) is not model


def test_memory_that_does_not_come_back_is_told(tiny_base, keeper, monkeypatch):
    monkeypatch.setattr(kept, "allocated", lambda: 100_000_000)
    base_of(tiny_base)
    keeper.give_back()
    assert keeper.told == []
    base_of(tiny_base)
    monkeypatch.setattr(kept, "allocated", lambda: 103_000_000)
    keeper.give_back()
    assert keeper.told == ["3 MB beside the base are still held on the accelerator"]


def test_a_classifier_shares_the_layers_and_nothing_else(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    judge = classifier_over(model)
    assert judge.model is model.model
    assert judge.score.weight.abs().max() == 0
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1)
    with torch.no_grad():
        judge.score.weight.copy_(plain.score.weight)
    plain.config.pad_token_id = judge.config.pad_token_id = 0
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(judge(ids).logits, plain(ids).logits)
    assert judge.config is not model.config


def test_stages_of_another_precision_share_a_process(tmp_path, tiny_base, chats):
    """transformers makes Accelerate's state anew, so what comes after is as it would be alone."""
    recipe = tmp_path / "two.yaml"
    recipe.write_text(f"""
model_name_or_path: {tiny_base}
dataset_name: {chats}
output_dir: {tmp_path / "run"}
max_steps: 2
lora_r: 4
per_device_train_batch_size: 4
stages:
  - {{stage: sft, name: half, bf16: true}}
  - {{stage: sft, name: whole}}
""")
    second = toolkit.run(recipe).stages["whole"].metrics["train_loss"]
    alone = toolkit.sft(model_name_or_path=str(tiny_base), dataset_name=str(chats), max_steps=2,
                        lora_r=4, per_device_train_batch_size=4, output_dir=str(tmp_path / "a"))  # fmt: skip
    assert second == alone.metrics["train_loss"]
