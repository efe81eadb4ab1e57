"""Answers that are kept, with how they came about: a folder of Parquet files that many may add to.

Every process writes files of its own, each named after what is in it and put in place whole, so
nobody waits for anybody. What two of them wrote is read once.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.artifacts.manifest import digest_of
from toolkit.errors import DataError

THINKING_ENDS = "</think>"
WORD = re.compile(r"\w+")
SCHEMA = pa.schema([
    ("id", pa.string()), ("question", pa.string()), ("prompt", pa.string()),
    ("reasoning", pa.string()), ("answer", pa.string()), ("said", pa.string()),
    ("votes", pa.string()), ("reward", pa.float64()), ("verdict", pa.bool_()),
    ("tokens", pa.int64()), ("method", pa.string()), ("model", pa.string()),
    ("adapter_digest", pa.string()),
])  # fmt: skip
"""The columns; `prompt` and `votes` are JSON."""

Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Trace:
    """An answer, and how it came about.

    Attributes:
        prompt: what was asked, text or messages, without examples and hints.
        reasoning: what was thought before it, up to and with `</think>`; "" where nothing is set
            apart.
        answer: what follows.
        said: what a checker reads in it; None if nothing, or nobody has read it.
        votes: for each answer how much spoke for it, where there was a vote.
        reward: what rewards or a judge gave it; None where nobody did.
        verdict: whether it is right; None where nobody knows.
        tokens: what it cost.
        method: how it was thought of: "sample", "greedy", "hinted", or a way of thinking.
        model: what the run calls who answered.
        adapter_digest: of the model or adapter that answered.
    """

    prompt: Prompt
    reasoning: str
    answer: str
    said: str | None = None
    votes: Mapping[str, float] = field(default_factory=dict)
    reward: float | None = None
    verdict: bool | None = None
    tokens: int = 0
    method: str = "sample"
    model: str = ""
    adapter_digest: str = ""

    @property
    def id(self) -> str:
        """A digest of the prompt, the text and who wrote it: the same trace is kept once."""
        return digest_of([self.prompt, self.text, self.adapter_digest])

    @property
    def text(self) -> str:
        """All that was written."""
        return self.reasoning + self.answer

    @property
    def question(self) -> str:
        """The words that it is found by: those of the user's last turn, or of the prompt."""
        return question_of(self.prompt)


def question_of(prompt: Prompt) -> str:
    """The words of a prompt that say what is asked."""
    if isinstance(prompt, str):
        return prompt
    asked = [turn for turn in prompt if turn.get("role") == "user"] or list(prompt)
    return str(asked[-1].get("content") or "") if asked else ""


def split(text: str) -> tuple[str, str]:
    """A completion as its reasoning and its answer, of which it is the sum."""
    before, mark, after = text.rpartition(THINKING_ENDS)
    return before + mark, after


class Traces:
    """A folder of traces.

    Args:
        folder: made with the first of them.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def add(self, traces: Iterable[Trace]) -> int:
        """Keep traces that are not there yet; several processes may do so at once.

        Returns:
            How many were new.

        Raises:
            DataError: if a file in the folder is not one of traces.
        """
        there = set(self.table(["id"]).column("id").to_pylist())
        new = {each.id: each for each in traces if each.id not in there}
        if not new:
            return 0
        rows = [row_of(name, each) for name, each in new.items()]
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"traces-{digest_of(sorted(new))[:24]}.parquet"
        written = self.folder / f".{name}.{os.getpid()}"
        with written.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, self.folder / name)
        return len(new)

    def read(self) -> list[Trace]:
        """All of them, each once, in the order of their files' names.

        Raises:
            DataError: if a file in the folder is not one of traces.
        """
        names = {each.name for each in fields(Trace)}
        found: dict[str, Trace] = {}
        for row in self.table(SCHEMA.names).to_pylist():
            given = {key: value for key, value in row.items() if key in names}
            given |= {key: json.loads(row[key]) for key in ("prompt", "votes")}
            found.setdefault(row["id"], Trace(**given))
        return list(found.values())

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all files, with what several of them hold."""
        parts = [SCHEMA.empty_table().select(list(columns))]
        for path in sorted(self.folder.glob("traces-*.parquet")):
            try:
                parts.append(pq.read_table(path, columns=list(columns)).cast(parts[0].schema))
            except (pa.ArrowException, KeyError, ValueError, OSError) as error:
                said = " ".join(str(error).split())[:200]
                raise DataError(
                    f"{path}: expected traces as Parquet with the columns {', '.join(columns)}: "
                    f"{said}; move the file away"
                ) from error
        return pa.concat_tables(parts)


class Memory:
    """Finds earlier traces by what they were asked.

    Args:
        traces: what is searched; known wrong ones are left out.

    Source:
        Lù 2024, "BM25S: Orders of magnitude faster lexical search via eager sparse scoring",
        arXiv:2407.03618, for Robertson's BM25.
    """

    def __init__(self, traces: Iterable[Trace]):
        self.traces = [each for each in traces if each.verdict is not False]
        self.words = [words_of(each.question) for each in self.traces]
        self.index: Any = None
        if any(self.words):
            self.index = bm25s.BM25()
            self.index.index(self.words, show_progress=False)

    def nearest(self, question: str, k: int) -> list[tuple[Trace, float]]:
        """The traces whose questions share the most telling words with this one.

        Of one question the best known counts alone: the one with the highest reward, then the
        cheapest.

        Args:
            question: what is asked.
            k: how many at most.

        Returns:
            Each with its BM25 score, the nearest first; none that shares no word.
        """
        asked = words_of(question)
        known = [word for word in asked if self.index and word in self.index.vocab_dict]
        if not known:
            return []
        scores = self.index.get_scores(known)
        found: dict[str, tuple[Trace, float]] = {}
        for at in np.lexsort((*self.ranks(), -scores)):
            each, score = self.traces[at], float(scores[at])
            if score > 0 and len(found) < k:
                found.setdefault(each.question, (each, score))
        return list(found.values())

    def ranks(self) -> tuple[list[int], list[float]]:
        """What decides between traces of equal scores: tokens, and before them the reward."""
        rewards = [-each.reward if each.reward is not None else 0.0 for each in self.traces]
        return [each.tokens for each in self.traces], rewards


def words_of(text: str) -> list[str]:
    """The words of a text, numbers among them, in small letters."""
    return WORD.findall(text.lower())


def row_of(name: str, trace: Trace) -> dict[str, Any]:
    """A trace as a row of SCHEMA."""
    plain = asdict(trace)
    as_json = {
        key: json.dumps(plain[key], ensure_ascii=False, sort_keys=key == "votes")
        for key in ("prompt", "votes")
    }
    return plain | as_json | {"id": name, "question": trace.question}
