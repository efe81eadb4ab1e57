"""Pictures as they may leave this machine: PNGs without a word that is not drawn."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from toolkit.artifacts.card import About, exams_of
from toolkit.artifacts.plots import EXAM, PLOTS, draw_exam
from toolkit.artifacts.secret_search import check_secrets
from toolkit.errors import HubError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DRAWN = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT"}
LONGEST_TEXT = 1 << 20  # bytes of one text in a picture, unpacked


def pictures_of(folder: Path, scratch: Path, about: About) -> dict[str, Path]:
    """The pictures that go with a stage, by their path in the repository.

    Args:
        folder: of the stage.
        scratch: where the exam's picture is drawn, which shows no other model than the card, and
            where pictures without their hidden texts are written.
        about: as of the card.

    Raises:
        HubError: if a picture is no PNG, or a text inside it holds a secret.
    """
    (scratch / PLOTS).mkdir(exist_ok=True)
    found = {
        f"{PLOTS}/{path.name}": bare(path, scratch)
        for path in sorted((folder / PLOTS).glob("*.png"))
        if path.is_file()
    }
    if rows := exams_of(folder, about):
        draw_exam(rows, scratch / EXAM)
        found[EXAM] = scratch / EXAM
    return found


def bare(path: Path, scratch: Path) -> Path:
    """A picture without its texts, dates and whatever else is not drawn; itself if it has none."""
    name = f"{PLOTS}/{path.name}"
    try:
        parts = list(chunks(path.read_bytes()))
    except (struct.error, ValueError) as error:
        raise HubError(f"{name}: expected a PNG, found another file; draw it again") from error
    if all(kind in DRAWN for kind, _, _ in parts):
        return path
    for number, (kind, content, _) in enumerate(parts):
        if kind not in DRAWN:
            text = scratch / f"{number}.txt"
            text.write_bytes(unpacked(kind, content))
            check_secrets({f"{name}, a text inside it": text})
            text.unlink()
    (scratch / name).write_bytes(
        SIGNATURE + b"".join(raw for kind, _, raw in parts if kind in DRAWN)
    )
    return scratch / name


def chunks(image: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The kind of each part of a PNG, its content, and the whole of it with length and checksum."""
    if not image.startswith(SIGNATURE):
        raise ValueError("no signature")
    at = len(SIGNATURE)
    while at < len(image):
        length, kind = struct.unpack_from(">I4s", image, at)
        raw = image[at : at + 12 + length]
        if len(raw) < 12 + length:
            raise ValueError("cut off")
        yield kind, raw[8:-4], raw
        at += len(raw)
        if kind == b"IEND":  # what follows is no part of the picture
            return


def unpacked(kind: bytes, content: bytes) -> bytes:
    """A chunk's content, with the text inside it unpacked where it is packed."""
    if kind in (b"zTXt", b"iTXt", b"iCCP"):
        for at in (at for at in range(len(content)) if content[at] == 0x78):  # as zlib begins
            try:
                text = zlib.decompressobj().decompress(content[at:], LONGEST_TEXT)
            except zlib.error:
                continue
            return content + b"\n" + text
    return content
