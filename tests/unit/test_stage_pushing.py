"""What a recipe pushes: when, to where, what happens when it fails, and what is asked before."""

import json

import pytest
import yaml

import toolkit
from tests import tiny
from tests.hub_stand_in import Fault, in_process
from tests.unit.test_pipeline import sft
from toolkit import cli
from toolkit.errors import HubError, RecipeError
from toolkit.recipe import load_recipe, recipe_from_keywords
from toolkit.stages import pushing
from toolkit.stages.pushing import default_name


@pytest.fixture
def hub(monkeypatch):
    with in_process(monkeypatch) as hub:
        yield hub


def sent(hub, name):
    return hub[name].at("main")[1]


def pipeline(tmp_path, base, rows, **shared):
    """A recipe of two stages and an exam."""
    keys = {
        "model_name_or_path": str(base), "output_dir": str(tmp_path / "our run"), "lora_r": 4,
        "max_steps": 1, "push_to_hub": True, "report_to": "none",
        "stages": [
            {"stage": "sft", "name": "first", "dataset_name": str(rows)},
            {"stage": "sft", "name": "second", "dataset_name": str(rows), "start_from": "first"},
            {"stage": "evaluate", "name": "exam", "num_generations": 1, "max_completion_length": 2,
             "of": ["base", "second"], "tasks": [{"name": "sums", "dataset_name": str(
                 tiny.save_rows(tmp_path / "sums.jsonl", [{"question": "1+1", "answer": "2"}]))}]},
        ],
    } | shared  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_a_finished_stage_is_pushed_and_the_trainer_itself_pushes_nothing(
    hub, tiny_base, chats, tmp_path, capsys
):
    done = sft(tiny_base, chats, tmp_path / "my run", push_to_hub=True)
    assert [name for _, name in hub.repositories] == ["me/my-run"], "as transformers would call it"
    assert hub["me/my-run"].private
    pushed = sent(hub, "me/my-run")
    folder = done.output_dir
    assert (
        pushed["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    )
    assert not {"training_args.bin", "optimizer.pt", "log.jsonl"} & pushed.keys()
    for text in (pushed["README.md"], pushed["stage.json"]):
        assert b"hub_model_id" not in text, "whoever trains it again pushes somewhere else"
        assert b"push_to_hub" not in text
    printed = " ".join(capsys.readouterr().out.split())
    assert f"pushed: {hub.endpoint}/me/my-run/commit/" in printed
    assert hub.calls["commit"] == 1

    changed = {"hub_private_repo": True, "hub_strategy": "all_checkpoints", "share_samples": True}
    sft(tiny_base, chats, tmp_path / "my run", push_to_hub=True, **changed)
    printed = capsys.readouterr().out
    assert "skipped" in printed, "where it is pushed to is no input of a stage"
    assert "the Hub holds it already" in printed
    assert hub.calls["commit"] == 1


def test_a_push_that_fails_leaves_the_stage_finished_and_can_be_repeated(
    hub, tiny_base, chats, tmp_path, capsys
):
    hub.fault = lambda name: Fault(413) if name == "commit" else None
    words = [
        "sft", "--model_name_or_path", str(tiny_base), "--dataset_name", str(chats), "--lora_r", "4",
        "--max_steps", "1", "--output_dir", str(tmp_path / "run"), "--push_to_hub",
        "--hub_model_id", "org/thing",
    ]  # fmt: skip
    assert cli.main(words) == 6
    said = capsys.readouterr().err
    assert (
        f"(413): push the adapter instead of the merged model, or ask the Hub for more room; your model is safe at {tmp_path / 'run'}; repeat with: toolkit push"
        in said
    )
    assert (tmp_path / "run" / "stage.json").is_file()
    before = (tmp_path / "run" / "stage.json").stat().st_mtime_ns
    hub.fault = lambda name: None
    assert cli.main(words) == 0
    assert "skipped" in capsys.readouterr().out
    assert (tmp_path / "run" / "stage.json").stat().st_mtime_ns == before
    assert "adapter_model.safetensors" in sent(hub, "org/thing")


def test_a_pipeline_pushes_each_stage_to_a_repository_of_its_own(
    hub, tiny_base, chats, tmp_path, capsys
):
    """One that fails does not stop the others, and an exam that comes later stands in the card."""
    recipe = pipeline(tmp_path, tiny_base, chats)
    hub.fault = lambda name: Fault(403) if name == "create" and hub.calls[name] != 2 else None
    with pytest.raises(HubError, match=r"may not write to me/our-run-first \(403\)") as failed:
        toolkit.run(recipe)
    assert "our-run-second" not in str(failed.value)
    assert "not pushed: your token" in " ".join(capsys.readouterr().out.split())
    assert [name for _, name in hub.repositories] == ["me/our-run-second"]
    assert b"## Evaluation" in sent(hub, "me/our-run-second")["README.md"]
    assert hub.calls["commit"] == 2
    hub.fault = lambda name: None
    toolkit.run(recipe)
    assert sorted(name for _, name in hub.repositories) == ["me/our-run-first", "me/our-run-second"]
    assert hub.calls["commit"] == 3
    written = yaml.safe_load((tmp_path / "our run" / "recipe.yaml").read_text())
    assert written["stages"][0]["hub_model_id"] == "me/our-run-first"


@pytest.mark.parametrize("words", [(), ("--hub_model_id", "org/mine")])
def test_a_repository_for_all_is_the_beginning_of_each_name(tiny_base, chats, tmp_path, words):
    path = pipeline(tmp_path, tiny_base, chats, hub_model_id="org/mine")
    recipe = load_recipe(path, words)
    ids = [stage.get("hub_model_id") for stage in recipe.stages]
    assert ids == ["org/mine-first", "org/mine-second", None]
    own = load_recipe(path, ["--second.hub_model_id", "b/c"])
    assert [s.get("hub_model_id") for s in own.stages] == ["org/mine-first", "b/c", None]


def test_two_stages_in_one_place_are_refused(hub, tiny_base, chats, tmp_path):
    words = ["--first.hub_model_id", "org/one", "--second.hub_model_id", "org/one"]
    path = pipeline(tmp_path, tiny_base, chats)
    with pytest.raises(RecipeError, match="'first' and 'second' are both pushed to org/one"):
        pushing.checked(load_recipe(path, words))
    assert pushing.checked(load_recipe(path, [*words, "--second.hub_revision", "other"]))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/sft", "sft"), ("a b--c..d", "a-b-c.d"), ("...", "model"), ("x" * 99, "x" * 48)],
)
def test_a_folder_s_name_becomes_one_that_the_hub_takes(folder, name, tmp_path):
    from huggingface_hub.utils import validate_repo_id

    keys = {"model_name_or_path": "a/b", "dataset_name": "a/b", "output_dir": tmp_path / folder}
    recipe = recipe_from_keywords("sft", **keys)
    assert default_name(recipe, recipe.stages[0]) == name
    validate_repo_id(f"me/{name}")


@pytest.mark.parametrize(
    ("account", "keys", "said"),
    [
        ({"auth": {"accessToken": {"role": "read"}}}, {}, "your token may not write to me/run"),
        ({}, {"hub_model_id": "you/run"}, r"you/run is in no namespace of yours \(me, org\)"),
        ({"orgs": [{"name": "org", "roleInOrg": "read"}]}, {"hub_model_id": "org/run"},
         "your token may not write to org/run"),
        ({}, {"hub_model_id": "org/public"}, "org/public is public; write hub_private_repo: false"),
    ],
)  # fmt: skip
def test_what_would_be_refused_after_training_is_said_before(
    account, keys, said, hub, tiny_base, chats, tmp_path
):
    hub.account |= account
    hub.add("org/public", {"README.md": b""})
    with pytest.raises(HubError, match=said):
        sft(tiny_base, chats, tmp_path / "run", push_to_hub=True, **keys)
    assert not (tmp_path / "run").exists()


def test_an_adapter_for_a_private_base_is_not_made_public(hub, chats):
    hub.add("me/base", {}, private=True)
    hub.add("org/base", {})
    keys = {"dataset_name": str(chats), "push_to_hub": True, "hub_private_repo": False}
    for base, said in (("org/base", None), ("me/base", "the base me/base is private")):
        recipe = recipe_from_keywords("sft", **keys, model_name_or_path=base)
        if said is None:
            assert pushing.checked(recipe) == ["me/sft: your token may write there"]
            continue
        with pytest.raises(HubError, match=said):
            pushing.checked(recipe)


@pytest.mark.parametrize("token", [None, "hf_" + "b2" * 17], ids=["none", "unknown"])
def test_without_a_token_that_the_hub_knows_nothing_is_trained(
    token, hub, tiny_base, chats, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        HubError, match="the Hub does not know you" if token else "is no token here"
    ):
        sft(tiny_base, chats, tmp_path / "run", push_to_hub=True)


def test_check_asks_the_hub_and_says_so_where_it_cannot(
    hub, tiny_base, chats, tmp_path, monkeypatch, capsys
):
    path = str(pipeline(tmp_path, tiny_base, chats))
    assert cli.main(["check", "--keys", path]) == 0
    assert "me/our-run-second: your token may write there" in capsys.readouterr().out
    assert not hub.repositories
    hub.fault = lambda name: Fault(503)
    assert cli.main(["check", "--keys", path]) == 0
    assert "unchecked: whether a push would be allowed" in capsys.readouterr().out
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = hub.calls.total()
    assert cli.main(["check", "--keys", path]) == 0
    assert (
        "unchecked: whether a push would be allowed (push_to_hub: HF_HUB_OFF"
        in capsys.readouterr().out
    )
    assert hub.calls.total() == before


def test_a_built_trainer_pushes_nothing(tiny_base, chats, tmp_path, capsys):
    trainer = toolkit.build(
        "sft", model_name_or_path=str(tiny_base), dataset_name=str(chats), push_to_hub=True,
        output_dir=str(tmp_path), hub_model_id="me/secret", hub_strategy="checkpoint",
        resume_from_checkpoint="hub", max_steps=1,
    )  # fmt: skip
    assert "a trainer from toolkit.build pushes nothing" in capsys.readouterr().out
    args = trainer.args
    assert (args.push_to_hub, args.hub_model_id, args.resume_from_checkpoint) == (False, None, None)
    assert args.hub_private_repo, "what a tracker makes on the Hub is private too"
    trainer.train()
    assert json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
