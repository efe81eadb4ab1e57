"""One base in memory for all stages of a pipeline: adapters come and go, the base stays.

Inside `one_base` the first stage that asks for a base loads it, and whoever asks for the same one
later is lent it as it was loaded, also under the head of a sequence classifier. It is lent once at a
time; `give_back` takes everything off again that was put on. Another base, precision, quantization
or attention takes its place.
"""

import copy
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    PeftModel,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils.hub import cached_file

from toolkit.models.as_it_was import AsItWas
from toolkit.models.digests import fingerprints
from toolkit.models.heads import HEAD

ALLOWED = 1.02  # memory after a stage beside that of the base alone
OVER_ADAPTERS = {
    AutoPeftModelForCausalLM: AutoModelForCausalLM,
    AutoPeftModelForSequenceClassification: AutoModelForSequenceClassification,
}
QUANTIZED = (
    "hf_quantizer", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method",
    "hf_device_map",
)  # fmt: skip
"""What transformers 5.23 sets on a model whose layers are quantized."""


@dataclass
class Held:
    """The base that is kept.

    Attributes:
        key: what it is and how it was loaded; see `key_of`.
        model: a causal language model without an adapter, unless it is lent.
        start: how it is put together.
        prints: fingerprints of its weights, by name.
        allocated: bytes on the accelerator once it was loaded; 0 where there is none.
        lent: whether somebody has it.
    """

    key: str
    model: Any
    start: AsItWas
    prints: dict[str, str]
    allocated: int = 0
    lent: bool = False


class Keeper:
    """Keeps one base, and lends it.

    Args:
        device: where it is kept.
        tell: shows a line to the user.
    """

    def __init__(self, device: torch.device, tell: Callable[[str], None]):
        self.device, self.tell = device, tell
        self.held: Held | None = None
        self.loads = 0

    def lend(self, name: str, arguments: Mapping[str, Any], load: Callable[[], Any]) -> Any | None:
        """The base as it was loaded; None if it is lent already.

        Args:
            name: its folder or Hub id.
            arguments: what `from_pretrained` is given.
            load: loads it, with weights that are finite.
        """
        if self.held is not None and self.held.lent:
            return None
        key = key_of(name, arguments)
        if self.held is None or self.held.key != key:
            self.drop()
            model = self.placed(load())
            self.held = Held(key, model, AsItWas(model), printed(model), allocated())
            self.loads += 1
        self.held.lent = True
        return self.placed(self.held.model)

    def placed(self, model: Any) -> Any:
        """The model on the device; a quantized one stays where it was loaded."""
        return model if getattr(model, "hf_device_map", None) else model.to(self.device)

    def give_back(self) -> None:
        """Take everything off the base that was put on since it was lent.

        A base that is not what was loaded, to the bit, is told and not kept.
        """
        if self.held is None or not self.held.lent:
            return
        self.held.start.restore()
        self.held.lent = False
        forget()
        self.placed(self.held.model)
        now = printed(self.held.model)
        before = self.held.prints
        if now != before:
            other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            self.tell(
                f"the base in memory is not what was loaded ({len(other):,} weights, such as "
                f"{other[0]}): whoever needs it next loads it again"
            )
            self.drop()
        elif allocated() > ALLOWED * self.held.allocated:
            more = (allocated() - self.held.allocated) / 1e6
            self.tell(f"{more:,.0f} MB beside the base are still held on the accelerator")

    def drop(self) -> None:
        """Give up the base, so that there is room for another."""
        self.held = None
        forget()


_keeper: Keeper | None = None


@contextmanager
def one_base(device: torch.device, tell: Callable[[str], None]) -> Iterator[Keeper]:
    """Keep one base in memory inside the block; arguments as of Keeper."""
    global _keeper
    before, _keeper = _keeper, Keeper(device, tell)
    try:
        yield _keeper
    finally:
        _keeper.give_back()
        _keeper.drop()
        _keeper = before


def lend(name: str, arguments: Mapping[str, Any], auto: Any, load: Callable[[], Any]) -> Any | None:
    """The base that a pipeline keeps, alone or under the head of a sequence classifier.

    Args:
        name: its folder or Hub id.
        arguments: what `from_pretrained` is given.
        auto: the class of transformers or PEFT that would load it.
        load: loads it as a causal language model.

    Returns:
        None where none is kept, it is lent already, or it cannot be had as that class.
    """
    wanted = OVER_ADAPTERS.get(auto, auto)
    if _keeper is None or wanted not in OVER_ADAPTERS.values():
        return None
    config = AutoConfig.from_pretrained(name, **of_the_hub(arguments))
    kinds = config.architectures or [""]
    if not kinds[0].endswith(("ForCausalLM", "LMHeadModel")):
        return None
    base = _keeper.lend(name, arguments, load)
    if base is None or wanted is AutoModelForCausalLM:
        return base
    classifier = classifier_over(base)
    if classifier is None:
        _keeper.give_back()
    return classifier


def is_kept() -> bool:
    """Whether a base is kept in memory."""
    return _keeper is not None


def is_lent() -> bool:
    """Whether somebody has the base that is kept."""
    return _keeper is not None and _keeper.held is not None and _keeper.held.lent


def give_back() -> None:
    """As `Keeper.give_back`; nothing where no base is kept."""
    if _keeper is not None:
        _keeper.give_back()


def drop() -> None:
    """Make room for a model that is trained whole, or is another base for a while."""
    if _keeper is not None and not (_keeper.held is not None and _keeper.held.lent):
        _keeper.drop()


def allocated() -> int:
    """Bytes that tensors hold on the accelerator."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def forget() -> None:
    """Give back the memory of what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def printed(model: nn.Module) -> dict[str, str]:
    """What changes with any bit, dtype or name of a model's weights."""
    weights: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    states = {name: getattr(weight, "quant_state", None) for name, weight in weights.items()}
    for name, state in states.items():
        if state is not None:
            weights[f"{name}.absmax"] = state.absmax
    found = fingerprints(weights)
    return {name: f"{weights[name].dtype} {found[name]}" for name in weights}


def key_of(name: str, arguments: Mapping[str, Any]) -> str:
    """What a base is, and how it is loaded: files, revision, precision, quantization, attention."""
    given = {key: value for key, value in arguments.items() if value is not None}
    folder = Path(name).expanduser()
    revision = given.pop("revision", None)
    if str(given.get("dtype", "auto")) == "auto":
        config = AutoConfig.from_pretrained(name, **of_the_hub(arguments))
        given["dtype"] = config.dtype or torch.float32
    quantization: Any = given.get("quantization_config")
    if quantization is not None and not isinstance(quantization, Mapping):
        given["quantization_config"] = quantization.to_dict()
    if folder.is_dir():
        where: Any = str(folder.resolve())
        files = sorted(
            path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")
        )
        given["files"] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    else:
        where = cached_file(name, "config.json", revision=revision)  # its folder is the commit's
    values = {key: str(value).removeprefix("torch.") for key, value in given.items()}
    return json.dumps([str(where), values], sort_keys=True)


def of_the_hub(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `from_pretrained` is given, which files it reads."""
    names = ("revision", "trust_remote_code")
    return {name: arguments[name] for name in names if arguments.get(name) is not None}


def classifier_over(model: Any) -> Any | None:
    """A sequence classifier of one label, whose head is zeros, over a causal model's own layers.

    Args:
        model: a causal language model.

    Returns:
        None where transformers has none whose layers are of the same kind.
    """
    config = copy.deepcopy(model.config)
    quantization = vars(config).pop("quantization_config", None)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            found: Any = AutoModelForSequenceClassification.from_config(
                config, attn_implementation=model.config._attn_implementation
            )
    except ValueError:
        return None
    inside = found.base_model_prefix
    own = getattr(model, inside, None)
    others = {n for n, _ in found.named_parameters() if not n.startswith(f"{inside}.")}
    if type(getattr(found, inside)) is not type(own) or others != {f"{HEAD}.weight"}:
        return None
    embedding = model.get_input_embeddings().weight
    head = nn.Linear(
        found.score.in_features, 1, bias=False, device=embedding.device, dtype=embedding.dtype
    )
    nn.init.zeros_(head.weight)
    setattr(found, inside, own)
    setattr(found, HEAD, head)
    for name in QUANTIZED:
        if name in vars(model):
            setattr(found, name, vars(model)[name])
    if quantization is not None:
        found.config.quantization_config = quantization
    return found.eval()


def with_adapter_of(base: Any, directory: str) -> PeftModel:
    """An adapter from disk over a base in memory, by plain PEFT, with room for the tokens it brings.

    The same as PEFT's `AutoPeftModel.from_pretrained` does with a base that it has loaded.
    """
    words = AutoTokenizer.from_pretrained(directory)
    if len(words) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(words), mean_resizing=False)
    return PeftModel.from_pretrained(base, directory)
