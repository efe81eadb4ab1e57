"""A model with the fast parts in it gives what it gave before, and what does not is left alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from tests import tiny, tiny_ppo
from tests.closeness import assert_close
from toolkit.models.as_it_was import AsItWas
from toolkit.models.fast import packing, switch
from toolkit.models.fast.attention import seen
from toolkit.models.fast.switch import speed_up
from toolkit.models.heads import add_scalar_heads
from toolkit.models.value import VALUE, add_value_adapter

LENGTHS = (19, 30, 26, 7)
MEASURED = ("log_probs", "entropy", "mean_logits", "is_top1")


@pytest.fixture(params=["tied", "untied"])
def base(request, tiny_base, untied_base):
    return tiny_base if request.param == "tied" else untied_base


def batch(side: str = "right"):
    """Rows of uneven length, of which two begin alike; the second half of each has labels."""
    torch.manual_seed(5)
    ids = torch.randint(1, 250, (len(LENGTHS), 30))
    ids[1, :16] = ids[0, :16] if side == "right" else ids[1, :16]
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(LENGTHS):
        where = slice(length) if side == "right" else slice(30 - length, None)
        mask[row, where] = 1
        scored = where.indices(30)[0] + length // 2
        labels[row, scored : where.indices(30)[1]] = ids[row, scored : where.indices(30)[1]]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False}


def packed_batch():
    """As TRL's `padding_free` gives it."""
    given = batch()
    real = given["attention_mask"].bool()
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return {
        "input_ids": given["input_ids"][real][None], "labels": given["labels"][real][None],
        "position_ids": positions[None], "use_cache": False,
        "cu_seq_lens_q": torch.tensor([0, *LENGTHS]).cumsum(0).int(), "max_length_q": 30,
    }  # fmt: skip


BATCHES = {"right": batch(), "left": batch("left"), "packed": packed_batch()}


def ready(base, **keys):
    """A policy with trained rows, as TRL gets it ready."""
    model, _ = tiny_ppo.policy(base, lora_dropout=0.0, **keys)
    add_fused_lm_head(model.get_base_model(), outputs=MEASURED)
    return model.train()


def scored(model, given, **more):
    """What is said of a batch, and the gradients of what is trained."""
    model.zero_grad()
    said = model(**given, fused_lm_head=True, **more)
    wish = torch.linspace(-1, 1, said.log_probs.numel()).view_as(said.log_probs)
    loss = (said.log_probs * wish).sum()
    (loss + said.scalars.square().sum() if "scalar_head" in more else loss).backward()
    named = [(n, w) for n, w in model.named_parameters() if w.requires_grad]
    return said, {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def assert_same(one, other, tolerance=1e-5):
    """Two results of `scored`; gradients as shares of all of them."""
    for name in MEASURED:
        assert_close(one[0][name].detach().float(), other[0][name].detach().float(), tolerance=1e-4)
    assert one[1].keys() == other[1].keys()
    ours, theirs = (torch.cat([g.flatten() for g in each[1].values()]) for each in (one, other))
    assert theirs.norm() > 0
    assert float((ours - theirs).norm() / theirs.norm()) <= tolerance


@pytest.mark.parametrize("kind", BATCHES)
def test_log_probabilities_and_gradients_are_those_of_trl(base, kind):
    model = ready(base)
    theirs = scored(model, BATCHES[kind])
    assert speed_up(model.get_base_model()) is None
    assert_same(scored(model, BATCHES[kind]), theirs)


def test_padding_and_shared_beginnings_are_not_computed(tiny_base):
    model = ready(tiny_base)
    speed_up(model.get_base_model())
    rows = []
    layer = model.get_base_model().model.layers[0]
    layer.register_forward_pre_hook(lambda module, given: rows.append(given[0].shape[1]))
    scored(model, BATCHES["right"])
    assert rows == [sum(LENGTHS) - 16]


def test_masks_of_a_batch_are_not_kept_for_the_next(tiny_base):
    model, sizes = ready(tiny_base), []
    assert speed_up(model.get_base_model()) is None
    for shared in (16, 12, 10):
        given = batch()
        given["input_ids"][1, shared:16] += 1
        model(**given)
        sizes.append(seen.cache_info().currsize)
    assert sizes[0] == sizes[1] == sizes[2] > 0


def test_positions_without_labels_are_not_scored(tiny_base, monkeypatch):
    model = ready(tiny_base)
    speed_up(model.get_base_model())
    seen = []
    upstream = switch.LabelLogProbs.apply
    monkeypatch.setattr(
        switch.LabelLogProbs, "apply", lambda *given: seen.append(len(given[0])) or upstream(*given)
    )
    scored(model, BATCHES["right"])
    assert seen == [int((BATCHES["right"]["labels"] != -100).sum())]


@pytest.mark.parametrize("head", ["with a bias", "trained whole"])
def test_a_head_that_is_not_frozen_is_left_to_trl(tmp_path, head):
    base = tiny.save_base(tmp_path / "base", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    if head == "with a bias":
        model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    add_fused_lm_head(model, outputs=MEASURED)
    model.requires_grad_(False).model.layers[0].requires_grad_(True)
    model.lm_head.weight.requires_grad_(head == "trained whole")
    theirs = scored(model, BATCHES["right"])
    assert speed_up(model) is None
    assert_same(scored(model, BATCHES["right"]), theirs)


def test_with_checkpointing_it_is_the_same(tiny_base):
    model = ready(tiny_base)
    theirs = scored(model, BATCHES["right"])
    speed_up(model.get_base_model())
    assert model.get_base_model().model.training
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    assert_same(scored(model, BATCHES["right"]), theirs)


def test_values_beside_it_are_the_same(base):
    model = ready(base)
    add_scalar_heads(model)
    add_value_adapter(model)
    tiny_ppo.stir(model, 0.05)
    real = BATCHES["left"]["attention_mask"].bool()
    given = {key: value for key, value in BATCHES["left"].items() if key != "use_cache"}
    with torch.no_grad():
        theirs = model(**given, scalar_head=VALUE, fused_lm_head=True)
        speed_up(model.get_base_model())
        ours = model(**given, scalar_head=VALUE, fused_lm_head=True)
    assert_close(ours.scalars[real], theirs.scalars[real], tolerance=1e-5)
    assert_close(ours.log_probs, theirs.log_probs, tolerance=1e-4)


def test_in_bfloat16_it_is_as_near_to_float32_as_trl(tiny_base):
    model = ready(tiny_base)
    exact = scored(model, BATCHES["right"])
    off = []
    for fast in (False, True):
        if fast:
            speed_up(model.get_base_model())
        with torch.autocast("cpu", torch.bfloat16):
            found = scored(model, BATCHES["right"])
        off.append(sum(float((g - exact[1][n]).norm()) ** 2 for n, g in found[1].items()) ** 0.5)
    assert off[1] <= 1.1 * off[0]


def test_nothing_else_changes(tiny_base):
    """Logits of a padded batch, what is generated, and what else is asked for."""
    model = ready(tiny_base).eval()
    given = {key: BATCHES["left"][key] for key in ("input_ids", "attention_mask")}

    def said():
        with torch.no_grad():
            written = model.generate(**given, max_new_tokens=8, do_sample=False)
            said = model(**given, output_hidden_states=True)
            assert said.past_key_values.layers[0].keys.shape[0] == len(LENGTHS)
            more = model(**given, use_cache=False, output_hidden_states=True)
            assert more.hidden_states[1].shape[:2] == given["input_ids"].shape
            return said.logits[given["attention_mask"].bool()], written

    theirs = said()
    speed_up(model.get_base_model())
    assert not any(module.training for module in model.modules())
    ours = said()
    assert_close(ours[0], theirs[0], tolerance=1e-4)
    assert torch.equal(ours[1], theirs[1])


def test_a_lent_model_is_given_back_without_it(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    start = AsItWas(model)
    speed_up(model)
    assert "forward" in vars(model.model)
    start.restore()
    assert model.config._attn_implementation == "sdpa"
    assert "forward" not in vars(model) | vars(model.model)


@pytest.mark.parametrize("fault", ["positions", "parts"])
def test_what_gives_other_numbers_stays_as_it_was(tiny_base, monkeypatch, fault):
    model = ready(tiny_base)
    upstream = model.get_base_model().model.forward
    if fault == "positions":  # rows that do not begin where they did
        pack = packing.pack

        def shifted(rows, slots):
            return pack([packing.Row(row.ids[::-1], row.slot, row.position) for row in rows], slots)

        monkeypatch.setattr(switch, "pack", lambda rows, slots: moved(shifted(rows, slots)))
    else:  # a model that hands nothing on to its attention
        monkeypatch.setattr(switch, "PARTS", "eager")
    assert speed_up(model.get_base_model()) == "without padding it gave other numbers"
    assert model.get_base_model().model.forward == upstream
    assert model.get_base_model().config._attn_implementation == "sdpa"


def moved(packed):
    """The same, each token one place too far."""
    return packing.Packed(packed.slots, packed.positions, packed.places.roll(1), packed.parts)


def test_other_attention_is_left_alone(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        tiny.save_base(tmp_path / "base"), attn_implementation="eager"
    )
    assert speed_up(model) == "its attention is eager"
    model.config._attn_implementation = "sdpa"
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert speed_up(model) == "its attention is linear_attention"
    assert "forward" not in vars(model)
