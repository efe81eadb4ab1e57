"""What `--help` prints: every command, and every key of a stage."""

import textwrap

from toolkit import launching
from toolkit.recipe import STAGES, describe

RUN_FLAGS = "[--overwrite] [--allow-change KEY] [--fresh-optimizer] [--debug] [--key value …]"


def overview() -> str:
    """What `toolkit --help` prints."""
    stages = "|".join(STAGES)
    lines = [
        "Post-training on the Hugging Face stack: one frozen base, LoRA adapters, one recipe.",
        "",
        "  toolkit run RECIPE [--overwrite] [--allow-change KEY] [--debug] [--key value …]",
        "                            one stage or a pipeline: skip what is finished, go on",
        "                            with what was interrupted; --until STAGE ends after it",
        f"  toolkit {stages} [--key value …]",
        "                            the same without a file; --help lists the keys",
        "  toolkit init FILE         look at the data and the device, write a recipe",
        "  toolkit check RECIPE [--json] [--time] [--step] [--gpu NAME --price PER_HOUR]",
        "                            can it work? data, template, rewards, memory, time;",
        "                            check --keys RECIPE looks at keys, types and ranges only",
        "  toolkit inspect RECIPE [--rows N] [--json]",
        "                            what exactly is trained: the tokens, coloured",
        "  toolkit report RUN        what a run did, as one page: report.html, report.md",
        "  toolkit compare A B …     runs or seeds side by side, with intervals",
        "  toolkit generate RUN --prompt TEXT | --dataset FILE --output FILE",
        "                            a finished run answers, and goes on where it was stopped",
        "  toolkit chat RUN          talk with it in the terminal; /good and /bad are kept",
        "  toolkit serve RUN [--port P] [--host H --token_file F]",
        "                            OpenAI's chat API, every stage a model over one base",
        "  toolkit traces FOLDER [--search TEXT] [--json]",
        "                            answers that were kept, or the nearest to a question",
        "  toolkit verify DIR        is what was saved what was trained? the proof, once more",
        "  toolkit merge DIR --output OUT",
        "                            an adapter inside its base, as one whole model",
        "  toolkit push DIR NAMESPACE/NAME [--merged] [--no-private] [--dry-run]",
        "                            to the Hub: what was trained, its card, no secrets",
        "  toolkit env               versions and devices, for a bug report",
        "",
        "  toolkit run RECIPE --accelerate NAME [--num_processes N]",
        "                            the same on many devices, through accelerate launch; one",
        f"                            of {', '.join(launching.names()[:4])},",
        f"                            {', '.join(launching.names()[4:])} or a path",
        "",
        "Exit codes: 0 done, 2 usage, 3 recipe, 4 data, 5 training, 6 Hub, 130/143 signals.",
    ]
    return "\n".join(lines)


def stage_help(stage: str) -> str:
    """Every key of a stage with its type, default and meaning, as TRL documents it."""
    lines = [f"toolkit {stage} {RUN_FLAGS}", ""]
    for key in describe(stage):
        default = "" if key.default is None else f" = {key.default}"
        lines.append(f"  --{key.name} ({key.annotation}){default}")
        lines += textwrap.wrap(
            key.help.replace("%%", "%"), 76, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return "\n".join(lines)
