"""What became of ranked answers: how many pairs, and what makes none."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from toolkit.data.sequence_report import readable


@dataclass(frozen=True)
class PairReport:
    """What became of ranked answers.

    Attributes:
        max_length: the most tokens that a side of a pair may have; None for any number.
        rows: rows that were read.
        prompts: different prompts with a pair.
        pairs: what is compared.
        tokens: of both sides of all pairs, prompts included.
        longest: tokens of the longest side of a pair, prompt included, kept or not.
        chosen_longer: share of the pairs whose chosen completion has more tokens.
        chosen_shorter: share of the pairs whose chosen completion has fewer.
        answers_empty: answers without a word, which are compared as their stop token alone.
        pairs_equal: pairs of which both answers are the same tokens, which are left out.
        pairs_tied: pairs of equal rank, which are left out.
        pairs_overlong: pairs with a side over `max_length`, which are left out.
        prompts_lost: prompts that are left without a pair.
        rows_left_out: rows of which the chat template leaves something out.
        first: the first row of each such count, by its name.
        left_out: what the chat template leaves out, such as "developer messages".
    """

    max_length: int | None
    rows: int
    prompts: int
    pairs: int
    tokens: int
    longest: int
    chosen_longer: float
    chosen_shorter: float
    answers_empty: int
    pairs_equal: int
    pairs_tied: int
    pairs_overlong: int
    prompts_lost: int
    rows_left_out: int
    first: Mapping[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report in words: what is compared, then one line for everything that is special."""
        lines = [
            f"{_many(self.rows, 'rows')} → {_many(self.pairs, 'pairs')} of "
            f"{_many(self.prompts, 'prompts')}, each prompt counts once; {readable(self.tokens)} "
            f"tokens, the longest side has {self.longest:,}; the chosen is longer in "
            f"{self.chosen_longer:.0%}, shorter in {self.chosen_shorter:.0%}"
        ]
        said = {
            "answers_empty": "without a word, compared as the stop token alone",
            "pairs_equal": "left out: chosen and rejected are the same tokens",
            "pairs_tied": "left out: equal ranks",
            "pairs_overlong": f"left out: a side is over max_length {self.max_length}",
            "prompts_lost": "left out: no pair of different answers and ranks that fits",
            "rows_left_out": f"with what the chat template leaves out ({', '.join(self.left_out)}): "
            "the model never sees it; write it as a role that the template shows, or set "
            "chat_template_path to a template that shows it",
        }
        return lines + [
            f"{_many(getattr(self, name), name.partition('_')[0])} {words} (first: "
            f"{self.first[name]})"
            for name, words in said.items()
            if getattr(self, name)
        ]


def pair_report(counts: Mapping[str, np.ndarray], *, max_length: int | None) -> PairReport:
    """The account of some pairs.

    Args:
        counts: for every entry, in order, `source` and `row`; `first`, whether it is its row's
            first; of the first, how many `answers` the row has, how many are `empty`, and how many
            pairs are `tied` or `equal`; `is_pair`, or else it stands for a row without one; `kept`;
            `prompt_key`; `prompt_length`, `chosen_length` and `rejected_length` in tokens;
            `longest`, the longer side with the prompt; `left_out` of its row.
        max_length: the most tokens that a side may have.
    """
    kept, is_first = counts["kept"], counts["first"] == 1
    trained = set(counts["prompt_key"][kept])
    lost = np.array([key not in trained for key in counts["prompt_key"]], bool)
    marks = {
        "answers_empty": counts["empty"],
        "pairs_equal": counts["equal"],
        "pairs_tied": counts["tied"],
        "pairs_overlong": counts["is_pair"] & ~kept,
        "prompts_lost": lost,
        "rows_left_out": (counts["left_out"] != "") & is_first,
    }
    at = {name: np.flatnonzero(mark) for name, mark in marks.items()}
    numbers = {name: int(mark.sum()) for name, mark in marks.items()}
    numbers["prompts_lost"] = len(set(counts["prompt_key"][lost]))
    missing = [what for text in np.unique(counts["left_out"]) if text for what in text.split(", ")]
    chosen, rejected = (counts[f"{side}_length"][kept] for side in ("chosen", "rejected"))
    return PairReport(
        max_length=max_length,
        rows=int(is_first.sum()),
        prompts=len(trained),
        pairs=int(kept.sum()),
        tokens=int((2 * counts["prompt_length"][kept] + chosen + rejected).sum()),
        longest=int(counts["longest"].max(initial=0)),
        chosen_longer=_share(chosen > rejected),
        chosen_shorter=_share(chosen < rejected),
        first={
            name: f"{counts['source'][found[0]]}, row {counts['row'][found[0]]}"
            for name, found in at.items()
            if len(found)
        },
        left_out=list(dict.fromkeys(missing)),
        **numbers,
    )


def why_no_pair(counts: Mapping[str, np.ndarray], report: PairReport) -> str:
    """Why nothing is left to compare, and what to do."""
    reasons = {
        "pairs_tied": "of equal rank",
        "pairs_equal": "of the same tokens twice",
        "pairs_overlong": f"with a side over max_length {report.max_length}",
    }
    found = [
        f"{_many(getattr(report, name), 'pairs')} {words} (first: {report.first[name]})"
        for name, words in reasons.items()
        if getattr(report, name)
    ]
    what = "; ".join(found) or "no row has two answers"
    shortest = int(counts["longest"][counts["is_pair"]].min(initial=np.iinfo(np.int64).max))
    remedy = f": the shortest needs max_length {shortest:,}" if report.pairs_overlong else ""
    return (
        f"{counts['source'][0]}: no pair is left to compare, of {_many(report.rows, 'rows')}: "
        f"{what}{remedy}"
    )


def _many(number: int, unit: str) -> str:
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0
