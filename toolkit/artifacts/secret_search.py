"""The search for tokens and keys in every byte that would leave this machine."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from huggingface_hub import get_token

from toolkit.errors import HubError

SECRETS = {
    "Hugging Face": ("hf_", rb"hf_[A-Za-z0-9]{30,}"),
    "Hugging Face organization": ("api_org_", rb"api_org_[A-Za-z0-9]{30,}"),
    "GitHub": ("gh", rb"gh[opsur]_[A-Za-z0-9]{36,}"),
    "GitHub personal": ("github_pat_", rb"github_pat_\w{50,}"),
    "GitLab": ("glpat-", rb"glpat-[\w-]{20,}"),
    "OpenAI or Anthropic": ("sk-", rb"sk-[\w-]{32,}"),
    "AWS": ("AKIA", rb"AKIA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    "Google": ("AIza", rb"AIza[\w-]{35}"),
    "Slack": ("xox", rb"xox[abeoprs]-[\w-]{20,}"),
    "private key": ("-----BEGIN ", rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}
"""Shapes of secrets: what one begins with, which is quickly found, and the whole of it."""
OWN_SECRET = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD)$")
SHORTEST = 16  # letters of the shortest secret that is looked for
STEP = 4  # of so many bytes one is looked at first
RUN = re.compile(rb"[ -~]{%d}" % SHORTEST)
PRINTED = np.zeros(256, bool)
PRINTED[0x20:0x7F] = True
BLOCK = 1 << 20
OVERLAP = 512  # bytes that two blocks share: more than the shortest form of any secret
Shapes = Mapping[str, tuple[str, re.Pattern[bytes]]]


def check_secrets(files: Mapping[str, Path]) -> None:
    """Look for the shapes of tokens and keys in every byte that would be pushed.

    Args:
        files: by the name that a message calls them.

    Raises:
        HubError: if there is one; the message does not repeat it.
    """
    shapes = {kind: (start, re.compile(whole)) for kind, (start, whole) in SECRETS.items()}
    own = {name: value for name, value in os.environ.items() if OWN_SECRET.search(name)}
    own["your Hugging Face token"] = get_token() or ""
    for name, value in own.items():
        if len(value) >= SHORTEST:
            whole = re.compile(re.escape(value.encode()))
            shapes[f"the value of {name}"] = (value, whole)
    for name, path in files.items():
        if found := secret_in(path, shapes):
            at, kind = found
            raise HubError(
                f"{name}: looks as if it held a secret at byte {at:,} ({kind}, "
                f"{shapes[kind][0][:4]}…); take it out of what was trained or written, and revoke it"
            )


def secret_in(path: Path, shapes: Shapes) -> tuple[int, str] | None:
    """Where the first block with a secret has it, and of which kind; None without any.

    Weights hardly ever have sixteen printed letters in a row, so most of their blocks are passed
    over four times faster than they could be searched.
    """
    odd = {
        kind: shape
        for kind, shape in shapes.items()
        if not (shape[0].isascii() and shape[0].isprintable())
    }
    longest = max(len(start.encode()) for start, _ in shapes.values())
    for begin, block in blocks(path, max(OVERLAP, 2 * longest)):
        for kind, (start, whole) in (shapes if has_run(block) else odd).items():
            at = position(block, start.encode(), whole, first=begin == 0)
            if at is not None:
                return begin + at, kind
    return None


def blocks(path: Path, overlap: int) -> Iterator[tuple[int, bytes]]:
    """The content of a file in pieces that overlap, each with where it begins."""
    with path.open("rb") as file:
        begin, block = 0, file.read(BLOCK)
        while block:
            yield begin, block
            fresh = file.read(BLOCK)
            kept = block[-overlap:]
            begin += len(block) - len(kept)
            block = kept + fresh if fresh else b""


def has_run(block: bytes) -> bool:
    """Whether sixteen printed letters stand in a row somewhere."""
    letters = np.frombuffer(block, np.uint8)
    sampled = PRINTED[letters[::STEP]]
    pairs = sampled[:-1] & sampled[1:]
    places = np.flatnonzero(pairs[:-2] & pairs[2:]) * STEP  # whose next three samples are printed
    for between in (2, 6, 10, 1, 5, 9, 3, 7, 11):
        places = places[PRINTED[letters[places + between]]]
    return any(
        RUN.search(block, max(place - STEP, 0), place + SHORTEST + STEP)
        for place in places.tolist()
    )


def position(block: bytes, start: bytes, whole: re.Pattern[bytes], *, first: bool) -> int | None:
    """Where a shape is in a block; what begins with a later block was seen in the one before."""
    at = block.find(start, 0 if first else 1)
    while at >= 0:
        inside_a_word = at > 0 and chr(block[at - 1]).isalnum()
        if whole.match(block, at) and not inside_a_word:
            return at
        at = block.find(start, at + 1)
    return None
