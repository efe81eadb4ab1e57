"""Whether a completion gives the reference answer: one checker per kind of answer.

Every checker takes any completion, however long or strange, at once and without raising.
Numbers have a parser of our own: math-verify 0.9 finds no 9 in "30-21 = 9 answered yellow. #### 9",
refuses to work in threads, and takes its time limit for `9^{9^{9^9}}`.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType

Checker = Callable[[str, str, Sequence[str]], bool]
"""Takes a completion, the reference answer, and the choices, if there are any."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST_NUMBER = 1000  # characters; Python itself refuses integers of more than 4,300 digits
LONGEST_WORD = 200  # characters; NFC sorts accents in quadratic time, seconds for 100,000 of them
LONGEST_EXPONENT = 3  # digits; 1e999999999 would fill the memory
LONGEST_TEXT = 100_000  # characters of a completion that are read, from its end
ENDINGS = ".,:/–-"  # signs behind a number that are no part of it
DENIED = " _"  # what stands for a denied number: no number, and no sign that a mark reaches over

ANSWER_IS = r"####|\\boxed\s?\{|\banswer\W{0,4}(?:\bis\b|:|=)"
"""Where a completion says what its answer is: `#### 5`, `\\boxed{5}`, `**Answer**: 5`."""

# What is denied is no answer: "not 41, 42 or 43", "neither B nor C", "B is wrong".
NOT = (
    r"(?i:\b(?:not|cannot|never|neither|nor|rather\ than|instead\ of)|n['’]t)"
    r"(?i:\s(?:be|equal|to|just|simply|in|the|option|choice)){0,3}\s\W{0,3}"
)
WRONG = (
    r"\s(?i:is|are|was)(?i:\s(?:wrong|incorrect|false)|(?:\snot|n['’]t)\s(?:the\ )?"
    r"(?:right|correct|answer))\b"
)
LISTED = r"(?:,?\s(?:or|nor|and)\b|,|(?<=,)\s)\W{0,3}"


def denials(one: str) -> str:
    """A pattern for what a text denies: a list of what the pattern `one` finds, in the last group.

    A list has ten at most and is not tried twice, or "B, B, B, …" would take quadratic time.
    """
    several = rf"{one}(?:{LISTED}{one}){{0,9}}+"
    return rf"{NOT}(?P<denied>{several})|(?P<wrong>{several}){WRONG}"


# A word that begins as a number does, whole: of "12:30" and "3-4" no part is the answer. Digits
# inside a name ("H2O") are none, and a minus behind an operand is no sign.
NUMBER_WORD = (
    r"(?:(?<![\w)])-)?(?:[$£€]-?)?(?<![\w.])(?<!\^\{)(?:\d{1,9}\ (?=\d{1,9}/\d))?"
    r"\.?\d[\d.,:/^²³¼-¾⅐-⅞–-]*+(?:[eE][+-]?\d++)?"
)
UNIT = r"(?:\ (?!(?:or|nor|and|but|of|to|x|is|are|was)\b)[a-z]{1,20}+)?"
TERM = rf"[$£€({{]*-?\d[\d.,]*+[)}}%]*{UNIT}"
TIMES = r"\ ?(?:[+/×÷^x]|\*(?:\*(?!\ ))?|\\(?:times|cdot|div)\b)\ ?"
# "the answer is 5 + 3 = 8": the number is behind the sum
SUM = rf"(?:{TERM}(?:(?:{TIMES}|\ ?-\ ?|\ of\ ){TERM}|[²³])+\ ?=\ ?)*+"
ANY_NUMBER = re.compile(rf"(?P<word>{NUMBER_WORD})", re.ASCII)
MARKED_NUMBER = re.compile(
    rf"(?:{ANSWER_IS}|^\s{{0,8}}A:)(?:\\text\{{|[^\w.+$£€-]){{0,20}}"
    rf"(?:either\ |_\W{{0,3}}(?:but|it(?:['’]|\ i)s)\ )?{SUM}(?P<word>{NUMBER_WORD}|_)",
    re.ASCII | re.IGNORECASE | re.MULTILINE,
)
DENIED_NUMBER = re.compile(
    denials(rf"(?<![^\s($*]){NUMBER_WORD}{UNIT}(?:{TIMES}{TERM}){{0,9}}+"), re.ASCII
)
# What stands in a line between two numbers of which neither is the answer: "6 * 7", "5 and 6"
BETWEEN = (
    rf"[)}}%$\\]*{UNIT}(?:{TIMES}|\ and\ )[$£€({{\\]*"
    rf"|[^\w\n]*{UNIT}[^\w\n]*(?P<or>\bor\b)[^\w\n]*"
)
BEFORE = re.compile(BETWEEN, re.ASCII | re.IGNORECASE)
# Behind a mark, also "10 to 42" and "10 - 5"; elsewhere "it grew from 10 to 42" ends up with 42
BEHIND = re.compile(rf"{BETWEEN}|[)}}%$]*{UNIT}(?:\ ?-\ ?|\ to\ )", re.ASCII | re.IGNORECASE)
# 1 000, with any of the spaces in use, and 1\,000 in LaTeX
THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:(?:[ \u00a0\u202f]|\\,)\d{3})+(?![\w/])", re.ASCII)
NUMBER = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>\d+)\ (?=.*/))?"
    r"(?P<value>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:/(?P<below>\d+)|[eE](?P<exponent>[+-]?\d+))?",
    re.ASCII,
)
FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,20})\}\{(\d{1,20})\}", re.ASCII)
MIXED = re.compile(r"(?<=\d)(?=\\[dt]?frac)", re.ASCII)

MARK = re.compile(ANSWER_IS, re.IGNORECASE)
NOT_SAID = re.compile(r"^(?:\\text\{|-(?!\d)|[^\w-]|_)+")
# "A dog" and "I think" begin with no letter of a choice
LETTER = (
    r"(?:[B-HJ-Z](?![\w'’])|[AI](?=\s*$|[.,:;)\]}*!?])|A(?=\s(?:is|are|or|nor|and|but|because)\b))"
)
OPENING_LETTER = re.compile(
    rf"(?:(?i:option|choice)\s\W{{0,3}})?(?P<letter>{LETTER}|[a-z](?=\)|\W*\Z))", re.MULTILINE
)
ANOTHER_LETTER = re.compile(rf"[\s).*]{{0,4}}(?:,|/|&|and|or)\s{{0,3}}\(?{LETTER}", re.MULTILINE)
NAMED_LETTER = re.compile(
    rf"(?:\(|(?i:\b(?:option|choice|is|be|but)|['’]s)\s{{1,3}}\W{{0,3}}"
    rf"|\b(?=\w\ is\ (?:the\ )?(?:right|correct|answer)\b))(?P<letter>{LETTER})",
    re.MULTILINE,
)
A_LETTER = re.compile(rf"(?<!\w)(?P<letter>{LETTER})", re.MULTILINE)
DENIED_LETTER = re.compile(
    denials(rf"(?:(?i:option|choice)\s\W{{0,3}})?(?<!\w){LETTER}[).*]{{0,3}}"), re.MULTILINE
)


def number(text: str, answer: str, choices: Sequence[str] = ()) -> bool:
    r"""Whether the final numbers are equal, by exact value: 1,000 is 1000.0, and 0.5 is 1/2.

    The final number is the last one behind `####`, `\boxed{`, "answer is" or "A:", and where there
    is no such mark the last one at all; in `<answer>…</answer>`, nothing outside counts. Currency
    and percent signs do not count. "42 or 43", "6 * 7" and "not 42" state no number.
    """
    expected = final_number(answer)
    return expected is not None and final_number(text) == expected


def exact(text: str, answer: str, choices: Sequence[str] = ()) -> bool:
    """Whether the texts are equal but for case, spaces and a full stop; containing is not enough."""
    expected = normalised(answer)
    return bool(expected) and normalised(text) == expected


def choice(text: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether the one choice that the completion names, by letter or text, is the answer."""
    expected = chosen(answer, choices)
    return expected is not None and chosen(text, choices) == expected


CHECKERS: Mapping[str, Checker] = MappingProxyType(
    {"number": number, "exact": exact, "choice": choice}
)


def is_gradable(checker: str, answer: str, choices: Sequence[str] = ()) -> bool:
    """Whether the checker can tell what a reference answer says: it is right by itself."""
    return CHECKERS[checker](answer, answer, choices)


def final_number(text: str) -> Fraction | None:
    """The number that a text ends up with; None if there is none, or its last word is no number."""
    text = _plain(text)
    found = _last(MARKED_NUMBER.finditer(text)) or _last(ANY_NUMBER.finditer(text))
    return _value(found["word"]) if found and _is_alone(found, text) else None


def ends_in_number(text: str) -> bool:
    """Whether a text is a number, or ends in one, with nothing but signs behind it."""
    plain = _plain(text)
    found = _last(ANY_NUMBER.finditer(plain))
    behind = plain[found.end() :] if found else "nothing"
    return not re.search(r"\w", behind) and final_number(text) is not None


def answer_block(text: str) -> str:
    """What stands in the last `<answer>…</answer>`, DeepSeek-R1's format; without it, the text.

    Of a text of over 100,000 characters, its end.
    """
    text = text[-LONGEST_TEXT:]
    return text.rpartition("<answer>")[2].partition("</answer>")[0]


def _plain(text: str) -> str:
    """A text with one spelling of minus, thousands and fractions, and no number that it denies."""
    text = answer_block(text).replace("−", "-").replace("{,}", ",")
    text = FRACTION.sub(r"\1/\2", MIXED.sub(" ", text))
    text = THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = re.sub(r"(?<=\d)x(?=\d)", "×", text)  # behind a letter, the 7 of "6x7" is no number
    return DENIED_NUMBER.sub(DENIED, text)


def _is_alone(found: re.Match[str], text: str) -> bool:
    """Whether a number is no part of a sum, and no other number is offered in its place."""
    line = text.rfind("\n", 0, found.start()) + 1
    before = _last(ANY_NUMBER.finditer(text, line, found.start()))
    behind = ANY_NUMBER.search(text, found.end())
    pairs = [(before, found, BEFORE)] if before else []
    pairs += [(found, behind, BEHIND)] if behind else []
    for first, second, pattern in pairs:
        ends = first.end() - len(first["word"]) + len(first["word"].rstrip(ENDINGS))
        between = pattern.fullmatch(text, ends, second.start())
        if between and not (between["or"] and _value(first["word"]) == _value(second["word"])):
            return False
    return True


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    kept = deque(matches, maxlen=1)
    return kept[0] if kept else None


def _value(word: str) -> Fraction | None:
    """The value of one word; None if it is a time, a date, a range, a power or too long."""
    word = word.rstrip(ENDINGS).translate(dict.fromkeys(map(ord, "$£€")))
    found = NUMBER.fullmatch(word) if len(word) <= LONGEST_NUMBER else None
    if found is None or len((found["exponent"] or "").lstrip("+-")) > LONGEST_EXPONENT:
        return None
    below = int(found["below"] or 1)
    if below == 0:
        return None
    value = Fraction(found["value"].replace(",", "")) / below + int(found["whole"] or 0)
    value *= Fraction(10) ** int(found["exponent"] or 0)
    return -value if found["sign"] else value


def normalised(text: str) -> str:
    """A text without case, runs of spaces, and punctuation at its end."""
    words = [w if len(w) > LONGEST_WORD else unicodedata.normalize("NFC", w) for w in text.split()]
    return " ".join(words).rstrip(".!?,;: ").replace("−", "-").casefold()


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The position of the choice that a text names; None if it names none, or several.

    Where the text says what its answer is ("the answer is B"), that line counts alone. A letter at
    the beginning decides ("B", "b)", "B. Paris"), unless another letter or another choice's text
    comes next; else every "(B)", "option B" and "is B", and every choice's text, is a name. What
    is denied ("not B", "B is wrong") is none.
    """
    text = answer_block(text).replace("−", "-")
    known = {normalised(words): position for position, words in enumerate(choices)}
    known.pop("", None)
    if (position := known.get(normalised(text))) is not None:
        return position
    said = _answer_line(text)
    denied = set(_denied(said, known))
    opening = OPENING_LETTER.match(said)
    if opening and _position(opening) not in denied:
        named = {_position(opening), *_next_to(opening, said, known)}
    else:
        named = {_position(letter) for letter in NAMED_LETTER.finditer(said)}
        named |= {known[found[0]] for found in _any_of(known).finditer(normalised(said))}
    named -= denied
    only = named.pop() if len(named) == 1 else None
    return only if only is not None and only < len(choices) else None


def _answer_line(text: str) -> str:
    """What stands in one line behind "the answer is"; without such words, the text."""
    mark = _last(MARK.finditer(text))
    said = NOT_SAID.sub("", text[mark.end() if mark else 0 :])
    return said.partition("\n")[0] if mark else said


def _next_to(letter: re.Match[str], said: str, known: Mapping[str, int]) -> Iterator[int | None]:
    """The choice whose text follows a letter; None if another letter does."""
    if ANOTHER_LETTER.match(said, letter.end()):
        yield None
    behind = NOT_SAID.sub("", normalised(said[letter.end() :].partition("\n")[0]))
    if follows := _any_of(known).match(behind):
        yield known[follows[0]]


def _denied(said: str, known: Mapping[str, int]) -> Iterator[int]:
    """The choices that a text says are not the answer, by letter or text."""
    for found in DENIED_LETTER.finditer(said):
        yield from map(_position, A_LETTER.finditer(said, *found.span(found.lastgroup or 0)))
    words, folded = _any_of(known), normalised(said)
    for found in re.finditer(denials(words.pattern), folded):
        for name in words.finditer(folded, *found.span(found.lastgroup or 0)):
            yield known[name[0]]


def _any_of(known: Iterable[str]) -> re.Pattern[str]:
    """Finds the choices' texts as whole words and numbers: "York" is not in "New York"."""
    longest_first = sorted(known, key=len, reverse=True)
    words = "|".join(map(re.escape, longest_first)) or r"\b\B"  # which is nowhere
    return re.compile(rf"(?<![\w-])(?<!\d[.,])(?:{words})(?!\w|[.,]\d)")


def _position(letter: re.Match[str]) -> int:
    return LETTERS.index(letter["letter"].upper())
