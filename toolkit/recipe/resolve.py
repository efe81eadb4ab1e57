"""From a file, flags or Python keywords to a checked recipe."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from toolkit.errors import RecipeError
from toolkit.recipe.combinations import check_combinations, check_references
from toolkit.recipe.flags import Change, from_keywords, from_words
from toolkit.recipe.keys import (
    CONFIGS,
    STAGES,
    did_you_mean,
    keys_of,
)
from toolkit.recipe.places import check_output_dir
from toolkit.recipe.ranges import shown
from toolkit.recipe.refused import refuse, refuse_nested
from toolkit.recipe.renamed import NEIGHBOURS, Renamed, renamed
from toolkit.recipe.schema import Recipe, StageRecipe
from toolkit.recipe.values import Given, check_datasets, convert
from toolkit.recipe.yaml_file import Document, read

NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,96}")
# A word of `of`, and files of a run.
RESERVED = ("base", "recipe.yaml", "report.json", "report.html", "report.md")


HUB_ID = "hub_model_id"


class Draft(NamedTuple):
    """A stage before its keys are checked."""

    stage: str
    name: str
    keys: dict[str, Given]
    place: str
    document: Document | None
    path: tuple[str | int, ...]


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    keywords: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: the YAML file.
        overrides: words of the command line, such as `--learning_rate 1e-4 --sft.max_steps=3`.
        keywords: the same from Python, as values.

    Raises:
        RecipeError: for the first thing that is wrong, with file and line.
        UsageError: if the words are no flags.
    """
    document = read(path)
    changes = [*from_words(overrides), *from_keywords(keywords or {})]
    default = Path("runs") / (Path(path).stem or "run")
    if "stages" in document.data:
        return _pipeline(document, changes, Path(path), default)
    keys = _given(document, ())
    return _one(keys, changes, Path(path), default, document=document)


def recipe_from_flags(stage: str, words: Sequence[str], *, given: Collection[str] = ()) -> Recipe:
    """A recipe of one stage from the words of the command line; `given` as of keywords."""
    keys = {"stage": Given(stage, "the command line", "keyword")}
    return _one(keys, from_words(words), None, Path("runs") / stage, given=given)


def recipe_from_keywords(stage: str, /, *, given: Collection[str] = (), **keys: Any) -> Recipe:
    """A recipe of one stage from Python keywords.

    Args:
        stage: the stage.
        given: names of the objects that stand for keys, such as `model` and `train_dataset`.
        **keys: recipe keys.
    """
    start = {"stage": Given(stage, "the call", "keyword")}
    return _one(start, from_keywords(keys), None, Path("runs") / stage, given=given)


def _given(document: Document, path: tuple[str | int, ...]) -> dict[str, Given]:
    """The keys of a mapping in a document."""
    data: Any = document.data
    for step in path:
        data = data[step]
    return {
        str(key): Given(value, document.where(*path, key), "file") for key, value in data.items()
    }


def _one(
    keys: dict[str, Given],
    changes: Sequence[Change],
    path: Path | None,
    default: Path,
    *,
    document: Document | None = None,
    given: Collection[str] = (),
) -> Recipe:
    """A recipe that is one stage."""
    for change in changes:
        if change.stage is None:
            keys[change.key] = change.given
    place = str(path) if path else keys["stage"].where
    stage, name = _identity(keys, place)
    for change in changes:
        if change.stage is not None:
            _check_stage_name(change, [name])
            keys[change.key] = change.given
    output_dir = _output_dir(keys, default)
    checked = _checked(Draft(stage, name, keys, place, document, ()), given)
    check_references(checked.written, _places(checked.where, place), [], [name])
    return Recipe(path, output_dir, (checked,), False)


def _pipeline(document: Document, changes: Sequence[Change], path: Path, default: Path) -> Recipe:
    """A recipe with `stages:`."""
    shared = _given(document, ())
    shared.pop("stages")
    general = {change.key: change.given for change in changes if change.stage is None}
    output_dir = _output_dir(shared | general, default)
    shared.pop("output_dir", None)
    general.pop("output_dir", None)
    drafts = _drafts(document)
    names = [draft.name for draft in drafts]
    for key, value in (shared | general).items():
        if key in ("stage", "name"):
            raise RecipeError(f"{value.where}: {key!r} belongs inside an entry of stages")
        _check_shared(key, value, [draft.stage for draft in drafts])
    for change in changes:
        if change.stage is not None:
            _check_stage_name(change, names)
            if change.key in ("stage", "name"):
                raise RecipeError(f"{change.given.where}: {change.key!r} is set in the file alone")
    stages: list[StageRecipe] = []
    for index, draft in enumerate(drafts):
        own = {c.key: c.given for c in changes if c.stage == draft.name}
        known = keys_of(draft.stage)
        keys = {k: v for k, v in shared.items() if k in known} | draft.keys
        keys |= {k: v for k, v in general.items() if k in known} | own
        if HUB_ID in keys and HUB_ID not in (own if HUB_ID in general else draft.keys | own):
            keys[HUB_ID] = _for_stage(keys[HUB_ID], draft.name)
        if "output_dir" in keys:
            raise RecipeError(
                f"{keys['output_dir'].where}: output_dir belongs at the top of a pipeline; the "
                f"stage's folder is {(output_dir / draft.name).as_posix()}"
            )
        stages.append(_checked(draft._replace(keys=keys)))
        places = _places(stages[-1].where, draft.place)
        check_references(stages[-1].written, places, names[:index], names[index:])
    return Recipe(path, output_dir, tuple(stages), True)


def _for_stage(given: Given, name: str) -> Given:
    """The repository of one stage, where the pipeline names one for all."""
    words: list[Any] = given.value if given.origin == "flag" else [given.value]
    if len(words) != 1 or not isinstance(words[0], str):
        return given
    own = f"{words[0]}-{name}"
    return replace(given, value=[own] if given.origin == "flag" else own)


def _drafts(document: Document) -> list[Draft]:
    """The entries of `stages`, each with its kind and its own name."""
    entries: Any = document.data["stages"]
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{document.where('stages')}: stages must be a list of mappings")
    drafts: list[Draft] = []
    for index, entry in enumerate(cast(list[Any], entries)):
        place = document.where("stages", index)
        if not isinstance(entry, dict):
            raise RecipeError(f"{place}: an entry of stages must be a mapping, as `- stage: sft`")
        keys = _given(document, ("stages", index))
        stage, name = _identity(keys, place)
        drafts.append(Draft(stage, name, keys, place, document, ("stages", index)))
    first: dict[str, Draft] = {}
    for draft in drafts:
        other = first.setdefault(draft.name.casefold(), draft)
        if other is not draft:
            raise RecipeError(
                f"{draft.place}: a second stage is called {draft.name!r} (the first: {other.place}); "
                "give each its own `name`"
            )
    return drafts


def _identity(keys: dict[str, Given], place: str) -> tuple[str, str]:
    """Take `stage` and `name` out of the keys, and check them."""
    if "stage" not in keys:
        raise RecipeError(f"{place}: the recipe has no `stage`; write one of {', '.join(STAGES)}")
    known = keys_of(STAGES[0])
    stage_given = keys.pop("stage")
    stage = stage_given.value[0] if stage_given.origin == "flag" else stage_given.value
    if stage not in STAGES:
        near = did_you_mean(str(stage), STAGES, f"; known: {', '.join(STAGES)}")
        raise RecipeError(f"{stage_given.where}: unknown stage {shown(stage)}{near}")
    name_given = keys.pop("name", None)
    if name_given is None:
        return stage, stage
    name = convert(known["name"], name_given)
    if not NAME.fullmatch(name) or name.casefold() in RESERVED:
        raise RecipeError(
            f"{name_given.where}: a stage's name is up to 96 letters, digits, '.', '_' or '-', does "
            f"not begin with '.', and is not {', '.join(RESERVED)}; found {shown(name)}"
        )
    return stage, name


def _output_dir(keys: dict[str, Given], default: Path) -> Path:
    """Take `output_dir` out of the keys; it is the whole run's."""
    given = keys.pop("output_dir", None)
    if given is None:
        return default
    value = convert(keys_of("sft")["output_dir"], given)
    if value is None:
        return default
    check_output_dir(value, given.where, from_file=given.origin == "file")
    return Path(value).expanduser()


def _check_stage_name(change: Change, names: Sequence[str]) -> None:
    if change.stage in names:
        return
    near = did_you_mean(str(change.stage), names, f"; stages: {', '.join(names)}")
    raise RecipeError(f"{change.given.where}: no stage is called {change.stage!r}{near}")


def _check_shared(key: str, given: Given, stages: Sequence[str]) -> None:
    """A key at the top of a pipeline must be known to one of its stages at least."""
    refuse(key, given)
    if any(key in keys_of(stage) for stage in stages):
        return
    for stage in stages:
        if change := renamed(key, stage):
            raise RecipeError(_became(change, given))
    kinds = ", ".join(dict.fromkeys(stages))
    known = {word for stage in stages for word in keys_of(stage)}
    raise RecipeError(
        f"{given.where}: unknown key {shown(key)}: no stage of this pipeline ({kinds}) knows it"
        f"{_hint(key, known)}"
    )


def _checked(draft: Draft, objects: Collection[str] = ()) -> StageRecipe:
    """Check every key of a stage, then the keys together."""
    known = keys_of(draft.stage)
    written: dict[str, Any] = {}
    for key, given in draft.keys.items():
        refuse(key, given)
        if key not in known:
            raise RecipeError(_unknown(key, given, draft.stage))
        written[key] = convert(known[key], given)
        refuse_nested(key, written[key], given.where)
        if key == "traces" and written[key] is not None:
            is_file = given.origin == "file"
            check_output_dir(written[key], given.where, from_file=is_file, key=key)
    where = {key: given.where for key, given in draft.keys.items()}
    if "datasets" in written:
        written["datasets"] = check_datasets(
            written["datasets"], _entries(draft, where["datasets"])
        )
    check_combinations(draft.stage, written, _places(where, draft.place), objects)
    return StageRecipe(draft.stage, draft.name, written, where)


def _unknown(key: str, given: Given, stage: str) -> str:
    """The message about a key that a stage does not know."""
    if change := renamed(key, stage):
        return _became(change, given)
    message = f"{given.where}: unknown key {shown(key)} for stage {stage!r}"
    if others := [other for other in CONFIGS if key in keys_of(other)]:
        return f"{message}; it is a key of {', '.join(others)}"
    if key == "config":
        return f"{message}; to run a file: toolkit run FILE"
    return message + _hint(key, keys_of(stage), f"; toolkit {stage} --help lists the keys")


def _hint(key: str, known: Collection[str], otherwise: str = "") -> str:
    """The nearest key: what another tool's word means here, else the one most alike."""
    meant = NEIGHBOURS.get(key)
    return f"; did you mean {meant!r}?" if meant in known else did_you_mean(key, known, otherwise)


def _became(change: Renamed, given: Given) -> str:
    """The message about a key that upstream has renamed or removed."""
    if change.successor is None:
        return f"{given.where}: {change.old!r} was removed: {change.write}"
    value = given.value
    if given.origin == "flag":
        value = " ".join(value) or "true"
    elif isinstance(value, bool) or value is None:
        value = shown(value)
    text = change.write.format(value=value if isinstance(value, str) else shown(value))
    return f"{given.where}: {change.old!r} was renamed: write '{change.successor}: {text}'"


def _places(where: Mapping[str, str], place: str) -> Callable[[str], str]:
    """How a message names the place of a key; with an absent key, the stage's."""

    def find(key: str) -> str:
        return where.get(key, place)

    return find


def _entries(draft: Draft, place: str) -> Callable[[int, str | None], str]:
    """How a message names the place of a field of `datasets`."""

    def where(index: int, field: str | None) -> str:
        document = draft.document
        if document is None or not place.startswith(f"{document.name}:"):
            return place
        inside = (*draft.path, "datasets", index, *([] if field is None else [field]))
        shared = ("datasets", index, *([] if field is None else [field]))
        return document.where(*(inside if inside in document.lines else shared))

    return where
