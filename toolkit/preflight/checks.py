"""Everything that can be known of a recipe before it is run, stage by stage."""

import psutil

from toolkit.pipeline import stage_module
from toolkit.preflight import data, fits, places, price, real, rewards, schedule, template
from toolkit.preflight.findings import OK, Findings
from toolkit.preflight.look import Look, Options
from toolkit.recipe import Recipe
from toolkit.stages import pushing

CHECKS = (
    ("places", places.check),
    ("data", data.check),
    ("template", template.check),
    ("rewards", rewards.check),
    ("memory", fits.check),
    ("schedule", schedule.check),
    ("schedule", real.check_time),
    ("price", price.check),
    ("step", real.check_step),
)


def check(recipe: Recipe, options: Options) -> Findings:
    """What stands in the way of a recipe whose keys are right.

    Raises:
        UsageError: for a device that is not in the table.
    """
    if options.gpu is not None:
        price.device_named(options.gpu)
    found = Findings(str(recipe.path or ""))
    names = ", ".join(stage.name for stage in recipe.stages)
    found.add("keys", OK, f"every key is known and in range ({names})")
    with found.catching("places", ""):
        for line in pushing.checked(recipe):
            found.add("places", OK, line)
    for kind in {stage.stage for stage in recipe.stages}:
        stage_module(kind)  # imports what a run would
    libraries = psutil.Process().memory_info().rss
    before: dict[str, Look] = {}
    for stage in recipe.stages:
        look = Look(recipe, stage, found, options, libraries=libraries, before=dict(before))
        before[stage.name] = look
        for subject, function in CHECKS:
            with found.catching(subject, stage.name):
                function(look)
    return found
