"""`toolkit serve --backend vllm`: the command line of `vllm serve`, with every stage as an adapter.

Written against vLLM 0.11 to 0.17 (vllm/entrypoints/openai/cli_args.py). It was run nowhere yet but
against a stand-in: no GPU was at hand.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from toolkit.errors import RecipeError, UsageError
from toolkit.inference.engine import BASE
from toolkit.models.load import fetch
from toolkit.models.vllm_adapter import vllm_obstacles, vllm_rank
from toolkit.stages.served import Served
from toolkit.stages.terminal import command, note

KEY = "VLLM_API_KEY"  # read by vLLM; on a command line every user of the machine could read it


def start(found: Served, *, host: str, port: int, token: str | None, limits: Any) -> int:
    """Become `vllm serve`, which takes signals itself.

    Args:
        found: what is served.
        host: where it listens.
        port: likewise.
        token: what clients have to show.
        limits: of them `max_concurrency`; vLLM has none for bodies and queues.

    Raises:
        UsageError: if vLLM is not installed.
        RecipeError: if it cannot serve an adapter.
    """
    program = shutil.which("vllm")
    if program is None:
        raise UsageError(
            "--backend vllm: vLLM is not installed here; install toolkit[vllm] (docs/rollouts.md)"
        )
    words = vllm_words(found, host=host, port=port, max_concurrency=limits.max_concurrency)
    note("vLLM has no limits on bodies, queues and time: put a proxy that has them before it")
    command("run", " ".join(["vllm", *words]))
    environment = {key: value for key, value in os.environ.items() if key != KEY}
    os.execve(program, [program, *words], environment | ({KEY: token} if token else {}))


def vllm_words(found: Served, *, host: str, port: int, max_concurrency: int) -> list[str]:
    """The words behind `vllm`; arguments as of `start`.

    Raises:
        RecipeError: if vLLM refuses one of the adapters, naming it and why.
    """
    listens = ["--host", host, "--port", str(port), "--max-num-seqs", str(max_concurrency)]
    if found.base is None:
        ((name, place),) = found.places.items()
        return ["serve", place, "--served-model-name", name, *listens]
    folders = {name: Path(fetch(place)) for name, place in found.places.items()}
    for name, folder in folders.items():
        if obstacles := vllm_obstacles(folder):
            raise RecipeError(f"{name}: vLLM cannot serve it: {'; '.join(obstacles)}; merge it")
    ranks = [vllm_rank(folder) or 0 for folder in folders.values()]
    words = ["serve", found.base, "--served-model-name", BASE, *listens, "--enable-lora"]
    words += ["--max-lora-rank", str(max(ranks)), "--max-loras", str(len(folders))]
    if found.revision:
        words += ["--revision", found.revision]
    template = next(reversed(folders.values())) / "chat_template.jinja"
    if template.is_file():
        words += ["--chat-template", str(template)]
    return [*words, "--lora-modules", *(f"{name}={folder}" for name, folder in folders.items())]
