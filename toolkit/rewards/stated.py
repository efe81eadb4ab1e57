r"""The answer that a text states, cut out of it: what stands in `\boxed{…}`, behind `####` and so on."""

import re
from collections.abc import Iterator

from toolkit.rewards.answer import ANSWER_IS, NOT, answer_block

LONGEST_LINE = 500  # characters of a statement
DEEPEST = 50  # braces inside braces

BOX = re.compile(r"\\f?boxed\s?\{")
MARK = re.compile(rf"(?:{ANSWER_IS}|^\s{{0,8}}A:)", re.IGNORECASE | re.MULTILINE)
DENIED = re.compile(rf"\W{{0,9}}{NOT}")
FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,500})\$\$|(?<![\\\d])\$(?=\S)(?P<inline>[^$\n]{1,500})(?<![\\\s])\$(?!\d)"
    r"|\\\((?P<round>[^\n]{1,500}?)\\\)|\\\[(?P<square>[^]]{1,500}?)\\\]"
)
BETWEEN = re.compile(r"\s*(?:,|;)?\s*(?:and|or)?\s*")  # "$1$ and $-1$" is one answer of two parts
SENTENCE = re.compile(r"[.;!?](?=\s|$)|\n|,?\s(?:because|since|as|so|where)\s")
DRESSING = " \t\n*_`'\"“”"


def stated(text: str) -> str | None:
    r"""What a text says its answer is, without the words around it.

    In `<answer>…</answer>`, nothing outside counts. There it is the last `\boxed{…}`; else what
    stands in the line behind the last `####`, "answer is", "answer:" or "A:", there the formula if
    there is one; else the last formula in dollar signs, `\(…\)` or `\[…\]`; else the last
    line.

    Returns:
        None where the text states nothing, or says what the answer is not.
    """
    text = answer_block(text)
    if (box := boxed(text)) is not None:
        return box.strip() or None
    marks = list(MARK.finditer(text))
    if marks:
        line = text[marks[-1].end() :].lstrip(DRESSING + ":=").partition("\n")[0]
        if DENIED.match(line):
            return None
        line = line[:LONGEST_LINE]
        return _formulas(line) or SENTENCE.split(line)[0].strip(DRESSING + ".:") or None
    formulas = list(FORMULA.finditer(text))
    if formulas:
        return _inside(formulas[-1])
    line = text.rstrip().rpartition("\n")[2]
    return line.strip(DRESSING + ".") or None if len(line) <= LONGEST_LINE else None


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` whose braces close; None if there is none."""
    for start in reversed(list(BOX.finditer(text))[-DEEPEST:]):
        depth = 1
        end = start.end() + LONGEST_LINE
        for position in _braces(text, start.end(), end):
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start.end() : position]
            if depth > DEEPEST:
                break
    return None


def _braces(text: str, start: int, end: int) -> Iterator[int]:
    for found in re.finditer(r"(?<!\\)[{}]", text[start:end]):
        yield start + found.start()


def _formulas(line: str) -> str | None:
    """The first formula of a line, with those that a comma, "and" or "or" joins to it."""
    first, joined = None, ""
    for found in FORMULA.finditer(line):
        if first is None:
            joined = _inside(found)
        elif BETWEEN.fullmatch(line, first.end(), found.start()):
            joined += ", " + _inside(found)
        else:
            break
        first = found
    return joined or None


def _inside(formula: re.Match[str]) -> str:
    return formula[formula.lastgroup or 0].strip()
