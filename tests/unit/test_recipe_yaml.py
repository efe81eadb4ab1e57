"""Reading YAML: numbers, lines, and what a hostile file may not do."""

import math
import re

import pytest

from toolkit.errors import RecipeError
from toolkit.recipe import yaml_file
from toolkit.recipe.yaml_file import parse_words, read, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1e5", 1e5), ("2.0e-4", 2e-4), ("-1E+3", -1000.0), (".5", 0.5), ("5.", 5.0),
        (".inf", math.inf), ("-.inf", -math.inf), ("12", 12), ("-1", -1), ("+7", 7), ("1_000", 1000),
        ("0x10", 16), ("0o17", 15), ("0123", 123), ("true", True), ("False", False), ("null", None),
        ("~", None), ("", None), ("yes", "yes"), ("no", "no"), ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"), ("e5", "e5"), ("1__0", 10), ("1e", "1e"), ("nan", "nan"), (".", "."),
    ],
)  # fmt: skip
def test_scalars(text, value):
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)
    assert math.isnan(scalar(".nan"))


def written(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_anchors_and_merges(tmp_path):
    document = read(written(tmp_path, (
        "a: &x {b: 1, c: [2, 3]}\n\nd: *x\ne:\n  <<: *x\n  b: 4\nf: '2e-4'\ng: \"yes\"\nh: {0: 1}\n"
    )))  # fmt: skip
    assert document.data == {
        "a": {"b": 1, "c": [2, 3]}, "d": {"b": 1, "c": [2, 3]}, "e": {"b": 4, "c": [2, 3]},
        "f": "2e-4", "g": "yes", "h": {0: 1},
    }  # fmt: skip
    assert document.where("d") == f"{tmp_path / 'x.yaml'}:3"
    assert document.where("e", "b") == f"{tmp_path / 'x.yaml'}:6"
    assert document.where("nothing") == str(tmp_path / "x.yaml")


BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: 'a' is written twice, first in line 1"),
        ("a: {b: 1,\n    b: 2}\n", ":2: 'b' is written twice"),
        ("a: 1\n\tb: 2\n", ":2: not valid YAML"),
        ("a: [1\nb: 2\n", "not valid YAML"),
        ("a: 1\n--- \nb: 2\n", "not valid YAML"),
        ("- 1\n", "expected a mapping"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a: !!python/object/apply:os.system [ls]\n", ":1: the tag"),
        ("{a: 1}: 2\n", "a key must be a word"),
        ("<<: 3\n", "<< takes a mapping"),
        ("a: *b\n", "undefined alias"),
        ("a: &a [*a]\n", "too deep"),
        ("a: &a {<<: *a}\n", "too deep"),
        (BOMB, "too many values"),
        ("a: " + "[" * 5000, "deep"),
        ("a: \x00", "not valid YAML"),
        (b"a: \xe9\n", "not UTF-8"),
        ("a: " + "x" * (1 << 20), "at most 1048576 bytes"),
    ],
)
def test_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as error:
        read(written(tmp_path, text))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path)


def test_words_of_the_command_line():
    assert parse_words("1e-4") == 1e-4
    assert parse_words('{"a": [1, 2.5]}') == {"a": [1, 2.5]}
    assert parse_words("[q_proj, v_proj]") == ["q_proj", "v_proj"]
    assert parse_words("#x") == "#x"
    assert parse_words("a: b") == "a: b"
    assert parse_words("[unclosed") == "[unclosed"
    assert parse_words("") == ""


def test_the_cap_is_on_what_is_read():
    assert yaml_file.MAX_BYTES == 1 << 20
