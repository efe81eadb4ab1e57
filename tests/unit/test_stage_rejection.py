"""Rejection sampling: what is learnt, what never is, when it stops, and that it resumes to the bit."""

import json
import zlib
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

import toolkit
from tests import exams, tiny
from toolkit.artifacts.inputs import model_identity
from toolkit.artifacts.manifest import sha256_of
from toolkit.data.sources import load_rows
from toolkit.errors import RecipeError, TrainingError
from toolkit.evaluation.graded import Key
from toolkit.inference.engine import Sampling
from toolkit.inference.traces import Traces
from toolkit.recipe import recipe_from_keywords
from toolkit.report.sections import round_lines
from toolkit.stages import rejection_round, sft
from toolkit.stages.rank import Sample
from toolkit.stages.rejection_round import hint_of, with_hint
from toolkit.stages.right_answers import Counts, Right, chosen, right_of
from toolkit.stages.scored import Answer

PROBLEMS = [{"prompt": f"{index}: once", "answer": f"{index}"} for index in range(8)]
HINT = "It is {answer}, they say."


def lucky(prompts, completions, **columns):
    return [float(zlib.crc32(text.encode()) % 3 == 0) for text in completions]


def nothing(prompts, completions, **columns):
    return [0.0] * len(prompts)


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A base that ends one token in five."""
    base = tiny.save_base(tmp_path_factory.mktemp("talkative") / "base", seed=3)
    stops = list(range(0, 257, 5))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return base


@pytest.fixture(scope="module")
def start(talkative, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    rows = [{"prompt": f"{index}: once", "completion": " more"} for index in range(8)]
    toolkit.sft(
        model_name_or_path=str(talkative), train_dataset=rows, output_dir=str(folder), lora_r=4,
        max_steps=1, report_to="none",
    )  # fmt: skip
    return folder


def settings(base, start, directory, **keys):
    file = tiny.save_rows(directory.parent / "problems.jsonl", PROBLEMS)
    return {
        "model_name_or_path": str(base), "start_from": str(start), "output_dir": str(directory),
        "dataset_name": str(file), "reward_funcs": [f"{__file__}:lucky"], "num_generations": 3,
        "max_completion_length": 6, "per_device_eval_batch_size": 16, "rounds": 2, "hint": HINT,
        "tasks": [{"name": "numbers", "rows": exams.ROWS[:3]}], "max_steps": 2, "save_steps": 1,
        "per_device_train_batch_size": 4, "learning_rate": 0.01, "report_to": "none",
    } | keys  # fmt: skip


def rising(monkeypatch, *scores):
    """What the held-out exams of start and rounds find, in their order."""
    left = list(scores)
    measured = rejection_round.examined

    def examined(recipe, policy, folder):
        number = int(folder.parent.name.rpartition("-")[2])
        return measured(recipe, policy, folder) | {"held_out": left[number]}

    monkeypatch.setattr(rejection_round, "examined", examined)


def built(directory, number):
    text = (directory / f"train-{number}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def whole(talkative, start, tmp_path_factory):
    """A run of two rounds without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        rising(patch, 0.1, 0.2, 0.3)
        kept = str(folder.parent / "traces")
        result = toolkit.rejection(**settings(talkative, start, folder), traces=kept)
    return result


def test_right_answers_are_learnt_and_the_hint_never_is(whole, talkative, start):
    folder = whole.output_dir
    done = whole.manifest["rounds"]
    assert [each["round"] for each in done] == [0, 1, 2]
    answered_by = [str(start), str(folder / "round-1" / "sft")]
    hinted: list[bool] = []
    for number, place in enumerate(answered_by, 1):
        rows = built(folder, number)
        assert len(rows) == done[number]["traces"] > 0
        own = exams.lines_of(folder / f"round-{number}", ["start", "round-1"][number - 1])
        shown = exams.lines_of(
            folder / f"round-{number}" / "hinted", ["start", "round-1"][number - 1]
        )
        asked = {line["question"] for line in shown}
        assert all("they say" in line["asked"] for line in shown)
        assert not any("they say" in line["asked"] for line in own)
        for row in rows:
            origin = row["from"]
            index = int(origin["problem"].rpartition(" ")[2]) - 1
            assert row["prompt"] == PROBLEMS[index]["prompt"]  # the problem, without any hint
            assert origin["hinted"] is (index in asked)
            lines = shown if origin["hinted"] else own
            (line,) = [
                line for line in lines
                if (line["question"], line["sample"]) == (index, origin["sample"])
            ]  # fmt: skip
            assert line["text"] == row["completion"]
            assert line["stopped"]
            assert lucky([""], [row["completion"]]) == [1.0] == [origin["reward"]]
            assert (origin["round"], origin["adapter_digest"]) == (number, model_identity(place))
        assert done[number]["trained_on_digest"] == sha256_of(folder / f"train-{number}.jsonl")
        assert whole.manifest["outputs"][f"train-{number}.jsonl"]
        hinted += [row["from"]["hinted"] for row in rows]
    assert set(hinted) == {True, False}


def test_every_round_trains_a_copy_of_the_start_and_the_best_is_kept(whole, talkative, start):
    folder = whole.output_dir
    first, *rounds = (
        load_file(place / "adapter_model.safetensors")
        for place in (start, folder / "round-1" / "sft", folder / "round-2" / "sft")
    )
    for each in rounds:
        assert any(not value.equal(first[name]) for name, value in each.items())
    kept = load_file(folder / "adapter_model.safetensors")
    assert all(value.equal(rounds[1][name]) for name, value in kept.items())
    assert whole.metrics["kept_round"] == 2
    for number in (1, 2):
        done = json.loads((folder / f"round-{number}" / "sft" / "stage.json").read_text())
        assert done["recipe"]["start_from"] == str(start)
        assert f"data {folder / f'train-{number}.jsonl'}" in done["inputs"]
    assert whole.manifest["verification"]["verified"]
    assert whole.manifest["inputs"][f"from {start}"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["held_out"] for entry in log if "held_out" in entry] == [0.1, 0.2, 0.3]
    model, _ = toolkit.load(folder)
    base = load_file(talkative / "model.safetensors")
    for name, weight in model.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in base:
            assert weight.equal(base[plain].to(weight.dtype)), name


def test_every_answer_is_a_trace_without_its_hint(whole, start):
    traces = Traces(whole.output_dir.parent / "traces").read()
    asked = {row["prompt"] for row in PROBLEMS}
    assert {trace.prompt for trace in traces} <= asked
    assert {trace.method for trace in traces} == {"sample", "hinted"}
    for trace in traces:
        assert [trace.reward] == lucky([""], [trace.text])
        assert trace.verdict is (trace.reward == 1.0)
    places = (start, whole.output_dir / "round-1" / "sft")
    assert {trace.adapter_digest for trace in traces} == {model_identity(str(p)) for p in places}
    rows = [row for number in (1, 2) for row in built(whole.output_dir, number)]
    right = {(trace.prompt, trace.text) for trace in traces if trace.verdict}
    assert {(row["prompt"], row["completion"]) for row in rows} <= right


def test_right_and_wrong_answers_are_preferences_for_dpo(whole):
    recipe = recipe_from_keywords(
        "dpo", model_name_or_path="x", dataset_name=str(whole.output_dir / "ranked.jsonl")
    )
    rows = load_rows(recipe.stages[0], purpose="preference")
    for row in rows.train:
        right = [bool(lucky([""], [text])[0]) for text in row["answers"]]
        assert right == [rank == 1 for rank in row["ranks"]]
        assert len(set(row["answers"])) == len(row["answers"])


class Kill(TrainerCallback):
    """Ends training after a step, once."""

    def __init__(self, folder, step):
        self.folder, self.step, self.done = folder, step, False

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.startswith(str(self.folder)) and state.global_step == self.step:
            raise exams.Interrupted


def test_an_interrupted_run_ends_as_one_that_was_not(
    whole, talkative, start, tmp_path, monkeypatch, capsys
):
    rising(monkeypatch, 0.1, 0.2, 0.3)
    folder = tmp_path / "run"
    given = settings(
        talkative, start, folder, dataset_name=whole.manifest["recipe"]["dataset_name"]
    )
    run = lambda: toolkit.rejection(**given)  # noqa: E731
    for after in (5, 9 + 10, 45):  # in the exam of the start, the samples, a later one
        exams.interrupted(monkeypatch, run, after=after)
    trained = sft.assemble
    with monkeypatch.context() as patch:
        patch.setattr(
            sft, "assemble",
            lambda *a, **k: trained(*a, **{**k, "callbacks": [Kill(folder / "round-2", 2)]}),
        )  # fmt: skip
        with pytest.raises(exams.Interrupted):
            run()
    assert (folder / "round-2" / "sft" / "checkpoint-1").is_dir()
    assert not (folder / "stage.json").exists()
    capsys.readouterr()
    result = run()
    assert "resuming from" in " ".join(capsys.readouterr().out.split())
    for name in ("adapter_model.safetensors", "train-1.jsonl", "train-2.jsonl", "ranked.jsonl"):
        one, two = ((place / name).read_bytes() for place in (whole.output_dir, folder))
        assert one == two, name
    assert result.manifest["rounds"] == whole.manifest["rounds"]
    assert toolkit.rejection(**given).metrics == result.metrics  # finished: skipped


def test_it_stops_when_the_score_rises_no_more_and_keeps_the_best(
    talkative, start, tmp_path, monkeypatch, capsys
):
    rising(monkeypatch, 0.1, 0.5, 0.5, 0.9)
    given = settings(talkative, start, tmp_path / "run", rounds=5, max_steps=1, save_strategy="no")
    result = toolkit.rejection(**given, keep="all")
    assert (result.metrics["rounds"], result.metrics["kept_round"]) == (2, 1)
    rising(monkeypatch, 0.9, 0.5)
    result = toolkit.rejection(**given | {"output_dir": str(tmp_path / "worse"), "hint": None})
    assert (result.metrics["rounds"], result.metrics["kept_round"]) == (1, 1)
    assert not (tmp_path / "worse" / "round-1" / "hinted").exists()
    assert "no round does better" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_work_is_told(talkative, start, tmp_path):
    def refused(message, kind=RecipeError, **keys):
        with pytest.raises(kind, match=message):
            toolkit.rejection(**settings(talkative, start, tmp_path / "run", **keys))

    refused("needs tasks", tasks=None)
    refused(r"no \{answer\} in it", hint="think!")
    refused("needs reward_funcs", reward_funcs=None)
    refused("expected more than 0", temperature=0.0)
    refused("keep", keep="longest")
    refused("takes no eval_dataset", eval_dataset=PROBLEMS)
    refused("none of 48 answers is right", TrainingError, reward_funcs=[f"{__file__}:nothing"])


def answer(text, sample, problem=0):
    key: Key = ("start", "prompt", problem, sample)
    ids = list(range(len(text.split())))
    return Right(Answer(key, "p", None, text, ids, True, {}, None, "d"), 1.0)  # type: ignore


def texts(keep, most, *given):
    return [each.answer.text for each in chosen(given, keep, most)]


def test_what_is_kept_by_hand():
    given = [
        answer("a b c d", 0), answer("a b c e", 1), answer("x y", 2), answer("a  b c d", 3),
        answer("a b c d", 4), answer("z", 5, problem=1),
    ]  # fmt: skip
    assert texts("all", 4, *given) == ["a b c d", "a b c e", "x y", "a  b c d", "z"]
    assert texts("shortest", 2, *given) == ["x y", "a b c d", "z"]
    assert texts("diverse", 2, *given) == ["x y", "a b c d", "z"]
    assert texts("diverse", 9, *given) == ["x y", "a b c d", "a b c e", "z"]
    like = [answer("a b c", 0), answer("a b c d", 1), answer("q r s t u", 2)]
    assert texts("shortest", 2, *like) == ["a b c", "a b c d"]
    assert texts("diverse", 2, *like) == ["a b c", "q r s t u"]


def test_right_is_what_all_rewards_together_say():
    answers = [answer(text, at).answer for at, text in enumerate("abc")]
    one = {answers[0].key: 0.5, answers[1].key: 1.0, answers[2].key: None}
    two = {answers[0].key: 0.25, answers[1].key: 0.0, answers[2].key: 1.0}
    counts = Counts()
    found = right_of(answers, {"one": one, "two": two}, 1.0, counts)
    assert [(each.answer.text, each.reward) for each in found] == [("b", 1.0)]
    assert (counts.right, counts.unscored) == (1, 1)


def test_a_hint_is_the_answer_and_not_its_working():
    assert hint_of({"answer": "2+2=4\n#### 4"}, HINT) == "It is 4, they say."
    assert hint_of({"solution": r"so \boxed{7}"}, HINT) == "It is 7, they say."
    assert hint_of({"answer": 7}, HINT) == "It is 7, they say."
    assert hint_of({"question": "?"}, HINT) is None
    before = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert with_hint(before, "h") == [before[0], {"role": "user", "content": "u\nh"}]
    assert before[1]["content"] == "u"


def test_an_answer_that_quotes_the_hint_is_left_out(tmp_path, monkeypatch):
    quoting, silent = (
        answer(text, at).answer for at, text in enumerate(["It is 3, they say. 3", "3"])
    )
    scores = {"lucky": {quoting.key: 1.0, silent.key: 1.0}}
    monkeypatch.setattr(rejection_round, "written", lambda *given: ([quoting, silent], scores))
    this = SimpleNamespace(
        recipe={"hint": HINT, "min_reward": 1.0, "traces": None}, folder=tmp_path
    )
    unsolved = [
        Sample(each.key, "p", {"answer": "3"}, Sampling(), 1, "d", "row")
        for each in (quoting, silent)
    ]
    counts = Counts()
    found = rejection_round.hinted(this, None, unsolved, counts)  # type: ignore
    assert [each.answer.text for each in found] == ["3"]
    assert (counts.quoting, counts.rationalised, found[0].hinted) == (1, 1, True)


def test_the_page_of_a_run_says_how_the_rounds_did(whole):
    first, *_, last = round_lines(whole.manifest)
    assert first == "start: 10.0 % right on the held-out questions"
    assert last.startswith("round 2: 30.0 % right on the held-out questions; ")
    assert last.endswith("; kept")
    assert (whole.output_dir / "plots" / "training.png").is_file()
