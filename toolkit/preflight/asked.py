"""What is asked of a device at once, and the memory that it needs for that."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Asked:
    """What goes through the model at once on one device.

    Attributes:
        rows: of a batch; of pairs each is two sequences.
        length: tokens of the longest sequence, prompt included.
        completion: of rollouts and pairs, those of them behind the prompt, at most.
        sampled: completions that are sampled together.
        scored: tokens of a row that have a label, at most, of a pair those of both answers; 0 if all
            may have one.
        prompts: of rollouts, different prompts among what is sampled together.
    """

    rows: int
    length: int
    completion: int = 0
    sampled: int = 0
    scored: int = 0
    prompts: int = 0

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(1, self.length - self.completion)


@dataclass(frozen=True)
class Need:
    """Bytes, part by part.

    Attributes:
        base: the frozen weights, or those of a model that is trained whole.
        adapters: trained and frozen ones, with their heads.
        gradients: of what is trained.
        optimizer: what it remembers of each weight.
        activations: what the forward pass keeps for the backward pass.
        logits: what the head needs beside it.
        working: what the backward pass needs beside all that, in its most costly moment.
        cache: keys and values of what is being sampled.
        sampling: of a rollout, what else is there while it is sampled.
        heap: of a CPU, freed blocks that the allocator keeps; see `toolkit.preflight.heap`.
        files: of a CPU that loads in 4 bits, the pages of the base's files: they stay mapped.
        runtime: Python and the libraries, or the device's own.
        checkpointed: whether activations are computed a second time instead of kept.
        rounded: whether a CPU computes in bfloat16 though no key says so.
    """

    base: int = 0
    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    working: int = 0
    cache: int = 0
    sampling: int = 0
    heap: int = 0
    files: int = 0
    runtime: int = 0
    checkpointed: bool = False
    rounded: bool = False

    @property
    def optimizer_weights(self) -> int:
        """How many weights are trained, all of them in float32."""
        return self.gradients // 4

    @property
    def kept(self) -> int:
        """What is there all the time."""
        return self.base + self.adapters + self.optimizer + self.heap + self.files + self.runtime

    @property
    def training(self) -> int:
        """The most that a step takes."""
        return self.kept + self.gradients + self.activations + self.logits + self.working

    @property
    def rollout(self) -> int:
        """The most that sampling takes."""
        return self.kept + self.cache + self.sampling if self.cache else 0

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.training, self.rollout)

    def as_dict(self) -> dict[str, int]:
        """Every part, and the sums."""
        return asdict(self) | {
            "training": self.training,
            "rollout": self.rollout,
            "peak": self.peak,
        }
