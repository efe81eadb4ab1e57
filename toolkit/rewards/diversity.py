"""How much completions repeat themselves: distinct n-grams, compression ratio."""

import zlib
from collections.abc import Hashable, Sequence

NGRAM = 3


def distinct_ngrams(pieces: Sequence[Sequence[Hashable]], size: int = NGRAM) -> float | None:
    """The share of n-grams that no earlier place of the same completion has, as the mean over them.

    Li et al., "A Diversity-Promoting Objective Function" (arXiv 1510.03055), completion by
    completion.

    Args:
        pieces: the tokens or words of each completion.
        size: of an n-gram.

    Returns:
        From 0, exclusive, to 1; None where no completion is so long.
    """
    shares: list[float] = []
    for each in pieces:
        ngrams = [tuple(each[at : at + size]) for at in range(len(each) - size + 1)]
        if ngrams:
            shares.append(len(set(ngrams)) / len(ngrams))
    return sum(shares) / len(shares) if shares else None


def compression_ratio(texts: Sequence[str]) -> float | None:
    """Bytes of a text over its bytes once DEFLATE has packed them, as the mean over texts.

    Shaib et al., "Standardizing the Measurement of Text Diversity" (arXiv 2403.00553): the higher,
    the more it repeats. They pack all texts together; but what answers of one kind share, such as
    the way in which a policy has learnt to work things out, is no fault.

    Returns:
        None where there is nothing to pack.
    """
    given = [text.encode("utf-8", errors="replace") for text in texts if text.strip()]
    ratios = [len(text) / len(zlib.compress(text)) for text in given]
    return sum(ratios) / len(ratios) if ratios else None
