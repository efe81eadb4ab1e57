"""What is read from the source of TRL and transformers is what their classes really have."""

import dataclasses
import importlib
import sys
import typing

import pytest

from toolkit.recipe import STAGES, keys_of
from toolkit.recipe.keys import CONFIGS
from toolkit.recipe.upstream import CLASSES, ENUMS, REQUIRED, fields_of, members_of


def real(name: str) -> type:
    package, path = {**CLASSES, **ENUMS}[name]
    module = importlib.import_module(f"{package}.{path.removesuffix('.py').replace('/', '.')}")
    return getattr(module, name)


def default_of(field: dataclasses.Field) -> object:
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


def words_of(annotation: str, owner: type) -> object:
    """The type that an annotation names where its class is defined, or where a base is."""
    for cls in owner.__mro__:
        scope = {**vars(typing), **vars(sys.modules[cls.__module__])}
        try:
            holder = type("Holder", (), {"__annotations__": {"it": annotation}})
            return typing.get_type_hints(holder, globalns=scope)["it"]
        except NameError:
            continue
    raise AssertionError(annotation)


@pytest.mark.parametrize("name", CLASSES)
def test_names_defaults_and_types_are_those_of_the_real_class(name):
    cls = real(name)
    expected = {field.name: field for field in dataclasses.fields(cls)}
    found = fields_of(name)
    assert set(found) == set(expected)
    for key, field in expected.items():
        assert found[key].default == default_of(field), key
        assert type(found[key].default) is type(default_of(field)), key
        assert words_of(found[key].annotation, cls) == field.type, key
        choices = field.metadata.get("choices")
        assert (found[key].choices is None) == (choices is None), key
        assert list(found[key].choices or ()) == list(choices or ()), key
        assert found[key].help == " ".join(field.metadata.get("help", "").split()), key


@pytest.mark.parametrize("name", ENUMS)
def test_enums(name):
    assert members_of(name) == tuple(member.value for member in real(name))


def test_what_has_no_default_is_required():
    assert fields_of("DatasetConfig")["path"].default is REQUIRED


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_knows_every_key_of_its_classes_once(stage):
    config = CONFIGS[stage]
    if config is None:
        assert not any(key.startswith("lora_") for key in keys_of(stage))
        return
    expected = {}
    owners = (config, "ScriptArguments", "DatasetMixtureConfig")
    for owner in owners if stage == "pretrain" else (*owners, "ModelConfig"):
        for field in dataclasses.fields(real(owner)):
            assert field.name not in expected, "two classes share a key: which gets it?"
            expected[field.name] = owner
    found = {key.name: key.owner for key in keys_of(stage).values()}
    if stage != "pretrain":
        expected["trust_remote_code"] = "toolkit"  # its value here is REPO@SHA
    assert {
        key: owner for key, owner in found.items() if owner != "toolkit"
    }.items() <= expected.items()
    assert set(expected) <= set(found)
