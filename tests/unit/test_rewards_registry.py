"""Rewards by name, with parameters, and a user's own from a file or a module."""

import pickle
import subprocess
import sys

import pytest

from toolkit.errors import RecipeError
from toolkit.rewards import load_reward, names

ALL = ["answer", "choice", "code", "format", "language", "length", "repetition"]
OWN = '''
import beside

def long_enough(prompts, completions, least=beside.LEAST, **columns):
    """Counts characters."""
    return [float(len(text) >= least) for text in completions]

async def judged(prompts, completions, **columns):
    return [1.0 for _ in completions]

def at_most(most: int):
    def short(prompts, completions, **columns):
        return [float(len(text) <= most) for text in completions]
    return short

class Graded:
    def __init__(self, points: float = 1.0):
        self.points = points

    def __call__(self, prompts, completions, **columns):
        return [self.points for _ in completions]

NUMBER = 5
'''


@pytest.fixture
def own(tmp_path):
    (tmp_path / "beside.py").write_text("LEAST = 3\n")
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    yield path
    sys.modules.pop("beside", None)


def message(entry):
    with pytest.raises(RecipeError) as caught:
        load_reward(entry)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names():
    assert names() == ALL


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("answer", "answer"),
        ("choice", "choice"),
        ({"name": "format", "tags": ["think"]}, "format"),
        ({"name": "length", "target": 20}, "length"),
        ("repetition", "repetition"),
        ({"name": "language", "language": "en"}, "language"),
        ("trl.rewards:think_format_reward", "think_format_reward"),
        ("trl.rewards.think_format_reward", "think_format_reward"),
        ("think_format_reward", "think_format_reward"),
        ("accuracy_reward", "accuracy_reward"),
        ("get_soft_overlong_punishment", "length"),
        (
            {"name": "trl.rewards:get_cosine_scaled_reward", "max_len": 9},
            "cosine_scaled_reward",
        ),
    ],
)
def test_a_reward_has_the_name_that_trl_logs(entry, name):
    from trl.trainer.utils import get_callable_name, is_async_callable

    reward = load_reward(entry)
    assert reward.__name__ == get_callable_name(reward) == name
    assert not is_async_callable(reward)
    if name in ALL:  # TRL's asynchronous rollouts send them to another process
        assert pickle.loads(pickle.dumps(reward)) == reward  # noqa: S301


def test_a_callable_is_returned_as_it_is():
    assert load_reward(message) is message


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("anwser", "unknown reward 'anwser'; did you mean 'answer'?"),
        ("zzz", "expected answer, choice, code, format"),
        ("adapter:reward", "adapter:reward: a reward adapter is loaded by the stage"),
        ("mine.py", "unknown reward 'mine.py'"),
        ("math:cos", "takes exactly one argument (0 given); its parameters: x"),
        ("time:time", "expected f(prompts, completions, **columns), or what makes one, found"),
        ("math:pi", "math has no function 'pi'"),
        (
            {
                "name": "trl.rewards:get_repetition_penalty_reward",
                "ngram_size": 2,
                "max_penalty": 1,
            },
            "max_penalty 1 should not be positive",
        ),
        ("nowhere.py:f", "there is no such file in"),
        ("no.such.module:f", "importing it raised ModuleNotFoundError: No module named 'no'"),
        ("math:sqr", "math has no function 'sqr'; did you mean 'sqrt'?"),
        ({"tags": ["think"]}, "a mapping needs `name`, a text; found tags"),
        ({"name": "format", 5: 6}, "a parameter's name must be text, found 5"),
        (5, "expected a name, a mapping or a function, found 5"),
        ({"name": "format", "regexp": "x"}, "unknown parameter 'regexp'; did you mean 'regex'?"),
        ({"name": "length", "target": "long"}, "reward length: target must be a whole number"),
        ({"name": "length", "target": 2.5}, "target must be a whole number or null, found 2.5"),
        ({"name": "answer", "column": 5}, "reward answer: column must be text, found 5"),
        ({"name": "answer", "checker": "numbr"}, "did you mean 'number'?"),
        ({"name": "format", "tags": [5]}, "reward format: tags must be a list of words"),
        ("length", "reward length: give target"),
        ({"name": "length", "target": 5, "soft_punish_cache": 2}, "reward length: give target"),
        ({"name": "length", "target": 0}, "target must be 1 or more"),
        ({"name": "length", "max_completion_len": 5, "soft_punish_cache": 6}, "from 0 to"),
        ({"name": "repetition", "ngram_size": 0}, "ngram_size must be 1 or more"),
        ({"name": "repetition", "max_penalty": 1.0}, "max_penalty 0 or less"),
        ({"name": "language", "language": "english"}, "unknown language 'english'"),
        ({"name": "trl.rewards:think_format_reward", "x": 1}, "unknown parameter 'x'"),
    ],
)
def test_what_is_wrong_is_one_line(entry, words):
    assert words in message(entry)


def test_a_file_of_ones_own(own):
    reward = load_reward(f"{own}:long_enough")
    assert reward(prompts=["", ""], completions=["ab", "abc"]) == [0.0, 1.0]
    assert sys.path[0] != str(own.parent)
    reward = load_reward({"name": f"{own}:long_enough", "least": 2})
    assert reward(prompts=["", ""], completions=["ab", "a"]) == [1.0, 0.0]
    graded = load_reward({"name": f"{own}:Graded", "points": 2.0})
    assert graded(prompts=[""], completions=["a"]) == [2.0]
    assert type(graded) is type(load_reward(f"{own}:Graded"))  # one module per file
    made = load_reward({"name": f"{own}:at_most", "most": 2})
    assert made(prompts=["", ""], completions=["ab", "abc"]) == [1.0, 0.0]
    assert load_reward(f"{own}:judged").__name__ == "judged"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            "long_enuf",
            "has no function 'long_enuf'; did you mean 'long_enough'?; found long_enough",
        ),
        ("NUMBER", "has no function 'NUMBER'"),
    ],
)
def test_what_a_file_does_not_have(own, function, words):
    assert words in message(f"{own}:{function}")


def test_parameters_of_ones_own_are_checked(own):
    assert "did you mean 'least'?" in message({"name": f"{own}:long_enough", "lest": 2})
    assert "unknown parameter 'pts'" in message({"name": f"{own}:Graded", "pts": 2})


def test_a_file_that_cannot_be_imported(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ny = 1 / 0\n")
    assert "importing it raised ZeroDivisionError: division by zero (broken.py:2)" in message(
        f"{path}:f"
    )
    path.write_text("def f(prompts, completions, **columns):\n    return [1.0]\n")
    assert load_reward(f"{path}:f")(prompts=[""], completions=[""]) == [1.0]  # edited, read again


def test_a_module_beside_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_here.py").write_text("def one(prompts, completions, **c): return [1]\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("my_rewards_here:one").__name__ == "one"


def test_importing_loads_no_torch():
    script = (
        "import sys, toolkit.rewards as r; r.get('answer'); r.get('format', tags=['think']); "
        "r.get('choice'); r.get('repetition'); "
        "print(sorted({'torch', 'transformers', 'trl', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
