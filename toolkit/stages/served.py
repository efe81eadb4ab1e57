"""Which models a run serves: every stage that writes answers, by its name, over one base."""

from dataclasses import dataclass
from pathlib import Path

from toolkit.artifacts.lineage import run_recipe
from toolkit.artifacts.manifest import MANIFEST, read_json
from toolkit.errors import RecipeError
from toolkit.models.load import WEIGHTS, adapter_config, check_model_path
from toolkit.stages.examined import holds_answers
from toolkit.stages.terminal import note


@dataclass(frozen=True)
class Served:
    """Models that stand over one base.

    Attributes:
        places: their folders or Hub ids, by the names that clients use.
        base: the folder or Hub id of what is below the adapters; None where there are none.
        revision: of the base on the Hub.
    """

    places: dict[str, str]
    base: str | None
    revision: str | None = None


def served_models(run: str, stage: str | None) -> Served:
    """What a run can serve; stages over another base, or whole models beside adapters, are named.

    Args:
        run: the folder of a run, of a stage or of a model, or a Hub id.
        stage: of a run, the only one.

    Raises:
        RecipeError: if there is none.
    """
    places = named(run, stage)
    below = {name: base_of(place) for name, place in places.items()}
    last = next(reversed(below.values()))
    kept = {name: places[name] for name in places if below[name] == last}
    if last is None:  # whole models share nothing
        kept = dict([list(places.items())[-1]])
    for name in places.keys() - kept.keys():
        note(f"{name} is not served: it stands over another base; name it with --stage")
    base, revision = last or (None, None)
    return Served(kept, base, revision)


def named(run: str, stage: str | None) -> dict[str, str]:
    """The models of a run, by the names of their stages."""
    folder = Path(run).expanduser()
    if stage is not None:
        check_model_path(str(folder / stage))
        return {stage: str(folder / stage)}
    if not folder.is_dir() or any((folder / name).is_file() for name in WEIGHTS):
        check_model_path(run)
        manifest = read_json(folder / MANIFEST) or {}
        return {str(manifest.get("name") or (folder.name if folder.is_dir() else run)): run}
    order = [str(each["name"]) for each in (run_recipe(folder) or {}).get("stages", ())]
    able = [name for name in order if holds_answers(folder / name)]
    if not able:
        raise RecipeError(
            f"{run}: expected a run with a stage that answers, or a model's folder, found neither"
        )
    return {name: str(folder / name) for name in able}


def base_of(place: str) -> tuple[str, str | None] | None:
    """What is below an adapter, and its revision; None for a whole model.

    Raises:
        RecipeError: if the adapter writes no answers.
    """
    adapter = adapter_config(place)
    if adapter is None:
        return None
    if adapter.get("task_type") == "SEQ_CLS":
        raise RecipeError(f"{place}: a reward adapter scores answers and writes none")
    return str(adapter["base_model_name_or_path"]), adapter.get("revision")
