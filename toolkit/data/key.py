"""What prepared rows depend on besides the rows: this code, and the libraries that it calls."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

# `trl` packs what is prepared here, and `datasets` keeps that under a name made from ours
LIBRARIES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers", "trl")


@cache
def code_digest() -> str:
    """A digest of the source of this package, and of the versions of what it calls."""
    digest = hashlib.sha256(repr([version(name) for name in LIBRARIES]).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
