"""Which base an adapter was trained over, as digests: the same shapes are not the same base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from toolkit.artifacts.inputs import weights_identity
from toolkit.artifacts.manifest import digest_of, digest_of_files, read_json
from toolkit.artifacts.model_files import model_files, weight_files

# What transformers writes anew whenever it saves a config, and what no forward pass reads.
VOLATILE = {"transformers_version", "_name_or_path"}
NO_TOKENIZER = {"config.json", "generation_config.json", "adapter_config.json"}
TOKENIZER = "tokenizer.json"  # all that makes tokens, where there is one
SAMPLED_COLUMNS = 64  # of the first, the middle and the last row of each weight
PARTS = {
    "config": "its config.json",
    "tokenizer": "its tokenizer",
    "weights": "its weights",
}


def base_folder(name: str, revision: str | None = None) -> Path | None:
    """Where a base lies on this machine: its folder, or the cache of the Hub; None where nowhere."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def base_identity(name: str, revision: str | None = None) -> dict[str, Any]:
    """What tells one base from another.

    Args:
        name: its folder or Hub id, which is in the cache once it was loaded.
        revision: branch, tag or commit on the Hub.

    Returns:
        Its name; its `commit` on the Hub; digests of its `config`, its `tokenizer` and the files of
        its `weights` (in the Hub's cache their LFS SHA-256), and the `sizes` of these in bytes; and
        `samples`, a digest of a few numbers of every weight, which does not depend on how the files
        are cut. None for what is not there.
    """
    folder = base_folder(name, revision)
    if folder is None:
        return {"name": name, "commit": None}
    is_local = Path(name).expanduser().is_dir()
    return {
        "name": name,
        "commit": None if is_local else folder.name,
        "config": _config_digest(folder / "config.json"),
        "tokenizer": _tokenizer_digest(folder),
        "weights": weights_identity(str(folder)),
        "sizes": [file.stat().st_size for file in weight_files(folder)] or None,
        "samples": _sample_digest(folder),
    }


def base_differences(
    recorded: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> list[str] | None:
    """In what a base is not the one that was recorded, as `PARTS` calls it.

    Args:
        recorded: `base_identity` at training, from `stage.json`; None where nothing was recorded.
        now: `base_identity` of what the adapter would go on.

    Returns:
        Nothing where it is the same base; None where too little is known of one of the two.
    """
    recorded = recorded or {}
    if recorded.get("commit") is not None and recorded["commit"] == now.get("commit"):
        return []
    if recorded.get("weights") is None or now.get("weights") is None:
        return None
    differing = [
        words for part, words in PARTS.items() if part != "weights" and _differ(recorded, now, part)
    ]
    cut_anew = _differ(recorded, now, "sizes") and _same(recorded, now, "samples")
    if _differ(recorded, now, "weights") and not cut_anew:
        differing.append(PARTS["weights"])
    return differing


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], part: str) -> bool:
    return None not in (one.get(part), other.get(part)) and one[part] != other[part]


def _same(one: Mapping[str, Any], other: Mapping[str, Any], part: str) -> bool:
    return one.get(part) is not None and one.get(part) == other.get(part)


def _config_digest(file: Path) -> str | None:
    """A digest of what a config says, whoever wrote it."""
    found = read_json(file)
    if found is None:
        return None
    return f"sha256:{digest_of({k: v for k, v in found.items() if k not in VOLATILE})}"


def _tokenizer_digest(folder: Path) -> str | None:
    """A digest of what makes tokens; a copy of the base may have more or fewer files beside it."""
    files = [folder / TOKENIZER]
    if not files[0].is_file():
        beside = sorted(set(model_files(folder)) - set(weight_files(folder)))
        files = [
            file
            for file in beside
            if file.name not in NO_TOKENIZER and not file.name.endswith((".index.json", ".py"))
        ]
    return f"sha256:{digest_of_files(folder, files)}" if files else None


def _sample_digest(folder: Path) -> str | None:
    """A digest of dtype, shape and a few numbers of every weight; None without safetensors."""
    found: dict[str, Any] = {}
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            return None
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is not a dict
                    found[key] = _sample(tensors.get_slice(key))
        except (SafetensorError, OSError):
            return None
    return f"sha256:{digest_of(found)}" if found else None


def _sample(tensor: Any) -> list[Any]:
    """Of a tensor on disk, read by offset: dtype, shape, and the first numbers of some rows."""
    shape = tensor.get_shape()
    parts = []
    if len(shape) > 1 and shape[0]:
        rows = sorted({0, shape[0] // 2, shape[0] - 1})
        parts = [tensor[row : row + 1].flatten()[:SAMPLED_COLUMNS] for row in rows]
    else:
        parts = [(tensor[:SAMPLED_COLUMNS] if shape else tensor[...]).flatten()]
    return [tensor.get_dtype(), shape, [part.float().tolist() for part in parts]]
