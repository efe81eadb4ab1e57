"""What is printed to be pasted when a stage is done."""

from toolkit.recipe import recipe_from_keywords
from toolkit.stages.next_steps import after_stage


def printed(capsys, stage, folder, **keys):
    if stage in ("grpo", "ppo", "rank"):
        keys["reward_funcs"] = ["length"]
    recipe = recipe_from_keywords(stage, model_name_or_path="base", **keys)
    after_stage(recipe.stages[0], folder)
    return capsys.readouterr().out


def test_a_policy_is_served_and_a_reward_model_scores(capsys, tmp_path):
    for stage in ("sft", "dpo", "grpo", "ppo"):
        folder = tmp_path / stage
        text = printed(capsys, stage, folder, dataset_name="x")
        assert f"toolkit generate {folder} --prompt" in text
        assert "toolkit chat" not in text, "it has no chat template"
        folder.mkdir()
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        text = printed(capsys, stage, folder, dataset_name="x")
        assert f"toolkit chat {folder}\n" in text
        assert f"toolkit serve {folder} " in text
        assert f"toolkit merge {folder} --output {folder}-merged\n" in text
    whole = printed(capsys, "sft", tmp_path / "sft", dataset_name="x", use_peft=False)
    assert f"toolkit serve {tmp_path / 'sft'} " in whole
    assert "toolkit merge" not in whole
    text = printed(capsys, "reward", tmp_path / "reward", dataset_name="x")
    assert "load_reward_model" in text
    assert f'reward_funcs: ["adapter:{tmp_path / "reward"}"]' in text
    assert "toolkit serve" not in text
    folder = tmp_path / "reward"
    assert f"toolkit merge {folder} --output {folder}-merged\n" in text
    text = printed(capsys, "reward", folder, dataset_name="x", use_peft=False)
    assert "toolkit merge" not in text
    assert printed(capsys, "evaluate", tmp_path, tasks=[{}]) == ""


def test_ranks_are_trained_on(capsys, tmp_path):
    (tmp_path / "sft").mkdir()
    text = printed(
        capsys, "rank", tmp_path / "rank", dataset_name="x", start_from=str(tmp_path / "sft")
    )
    assert (
        f"toolkit reward --dataset_name {tmp_path / 'rank' / 'ranked.jsonl'} "
        f"--model_name_or_path base --start_from {tmp_path / 'sft'}"
    ) in text
