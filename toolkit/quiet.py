"""Silences what libraries say about things that are meant here, and nothing else they say.

Nothing is imported for it: a filter is laid on a logger's name before its library is loaded.
"""

import logging
import os
import sys
import warnings

# Logger -> how its message starts. New rows are set to the mean by us; long rows are cut later.
EXPECTED: dict[str, str | tuple[str, ...]] = {
    "transformers.trainer_utils": "The tokenizer has new PAD/BOS/EOS tokens",
    "transformers.modeling_utils": (
        "The new embeddings will be",
        "The new lm_head weights will be",
    ),
    "transformers.tokenization_utils_base": "Token indices sequence length is longer",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
# TRL 1.16 sets or calls the first three and PEFT 0.21 reads the last; transformers 5.23 warns of them.
DEPRECATED = (
    "`gradient_checkpointing` is deprecated",
    "`gradient_checkpointing_enable` is deprecated",
    "`gradient_checkpointing_disable` is deprecated",
    "`is_gradient_checkpointing` is deprecated",
)


def quiet_libraries() -> None:
    """Lay the filters; calling it again changes nothing."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name, start in EXPECTED.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, Expected) for known in logger.filters):
            logger.addFilter(Expected(start))
    for start in DEPRECATED:
        warnings.filterwarnings("ignore", start, FutureWarning)


class Expected(logging.Filter):
    """Drops the messages that start in one way.

    Args:
        start: how they start; one of several.
    """

    def __init__(self, start: str | tuple[str, ...]):
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message may pass."""
        return not record.getMessage().startswith(self.start)
