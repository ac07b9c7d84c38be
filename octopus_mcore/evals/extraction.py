r"""Where a response's answer stands, and which option, number or yes/no it is. Pure functions of texts.

Benchmarks differ in how they find an answer; VLMEvalKit's rules and a helping language model are most common. These rules are
one for all adapters, so that two benchmarks never read the same sentence in two ways. They take an answer for what it says at
its end, and take nothing where a text names two things: a wrong guess would count for or against a model by chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from octopus_mcore.rewards.boxed import last_boxed
from octopus_mcore.rewards.choices import WRAPPER
from octopus_mcore.rewards.format import behind_thought
from octopus_mcore.rewards.tags import blocks

_EMPHASIS = re.compile(r"\*\*|__|^#+\s*|^>\s*", re.MULTILINE)
_ANNOUNCED = re.compile(
    r"\b(?:answer|option|choice)\b(?:[ \t]+(?:to|for)\b[^\n.:]{0,80}?)?"
    r"(?:[ \t]+(?:is|should be|must be|would be)\b[ \t]*:?|[ \t]*[:：])(?![ \t]*not\b)\s*(?=\S)"
    r"|^[ \t]*(?:final[ \t]+)?answer[ \t]*\n\s*(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)

_FIRST_LETTER = re.compile(r"[(\[{]?\s*([A-Za-z])\s*(?:$|[)\].:,}])")
_BRACKETED = re.compile(r"[(\[]\s*([A-Z])\s*[)\]]")
_ARTICLE = r"(?![AI] (?!is\b|or\b|and\b|but\b|not\b|was\b|because\b|since\b|as\b|matches\b)[a-z0-9'])"
_STANDS_ALONE = re.compile(rf"(?<![A-Za-z0-9_'’^\\]){_ARTICLE}([A-Z])(?![A-Za-z0-9_'’^=])")
_POINTED_AT = re.compile(r"(?i:\b(?:option|choice|answer)s?\b\s*(?:is\b)?\s*:?)\s*(?:([A-Z])\b|[(\[]([A-Za-z])[)\]])(?!['’])")

_DENIED = re.compile(
    r"(?i:\b(?:can)?not|n['’]t|\bnor|\bneither)\s+(?:be\s+|the\s+)?(?i:(?:option|choice|answer)\s+)?[(\[]?([A-Z])\b[)\]]?"
    r"|(?<![\w'’])[(\[]?([A-Z])[)\]]?\s+(?:is|was|are)(?:\s+not\b|n['’]t\b|\s+(?:wrong|incorrect|false)\b)"
)
_NEXT_TO = r"\s*(?:,|;|/|\bor\b|\band\b)\s*(?:or\s+)?(?i:option\s*)?"
_OFFERED = re.compile(rf"[(\[]([A-Z])[)\]]{_NEXT_TO}[(\[]?([A-Z])\b(?!['’])|\b([A-Z])\b{_NEXT_TO}[(\[]([A-Z])[)\]]")
_BRACKETED_ROW = re.compile(r"[(\[][A-Z][)\]]\s*[(\[][A-Z][)\]]")
_MARK_BEHIND = re.compile(r"(?:\bor\b|\band\b|[,;])\s*[(\[]?([A-Z])\s*[).:\]]\s*\S")
_SECOND_MARK = re.compile(r"(?:\n[(\[]?|\s[(\[]|\s(?=B[):]))B\s*[).:\]]\s*\S")
_DENIED_NUMBER = re.compile(r"(?:\bnot|n['’]t)\s+(?:[+\-−$]\s*)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?![\w%]|\.\d)")

_NUMBER = re.compile(r"(?<![\w.])[+\-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?!\w))?")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def final_answer(text: str, whole: bool = True) -> str | None:
    r"""What a response gives as its answer, stripped, or None.

    Behind the last `</think>` (a think block that never closes has no answer), the first of: the last balanced `\boxed{…}`;
    the last `<answer>…</answer>`; the last line that announces it ("Answer: …", "the answer is …", a heading "Answer"); with
    `whole` all that is left. Something that is empty is no answer.
    """
    behind = behind_thought(text)
    if behind is None:
        return None
    marked = marked_answer(text)
    if marked is not None:
        return marked or None
    announced = announced_answer(behind)
    if announced is not None:
        return announced
    return (behind.strip() or None) if whole else None


def marked_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` behind the thought, or else of the last `<answer>…</answer>`, stripped and maybe
    empty; None without either."""
    behind = behind_thought(text) or ""
    boxed, tagged = last_boxed(behind), blocks(behind, "answer")
    if boxed is None and not tagged:
        return None
    return (tagged[-1] if boxed is None else boxed).strip()


def announced_answer(text: str) -> str | None:
    """What the text's last announcement says ("Answer: …", "the answer is …"), up to the end of its line, without emphasis and
    a full stop; None without one."""
    plain = _EMPHASIS.sub("", text)
    ends = [match.end() for match in _ANNOUNCED.finditer(plain)]
    if not ends:
        return None
    rest = plain[ends[-1] :].partition("\n")[0].strip()
    return (rest[:-1].rstrip() if rest.endswith(".") and not rest.endswith("..") else rest) or None


def option_letter(answer: str, count: int) -> str | None:
    r"""The letter of one of `count` options (A, B, …) that an answer names, or None.

    `B`, `(b)`, `[B]`, `\text{B}`, `$B$`, `B. 12 cm`, `B) 12 cm`, "the answer is B", "option (B)", or the one capital letter
    that stands alone in a sentence. The article "A" and the pronoun "I" are no letters, nor is one that is denied ("not B", "B
    is wrong"); where different letters remain ("(A) or B", a list of the options), or one beyond the options, there is none.
    """
    if not 0 < count <= len(ascii_uppercase):
        raise ValueError(f"the number of options must lie in 1 to {len(ascii_uppercase)}, found {count}")
    letters = ascii_uppercase[:count]
    text = WRAPPER.sub(r"\1", _EMPHASIS.sub("", answer)).replace("$", "").strip().strip("'\"`“”")
    if _offers_several(text):
        return None
    text = _DENIED.sub(" ", text)
    if (first := _FIRST_LETTER.match(text)) is not None and not _lists_letters(text, first.end()):
        return first[1].upper() if first[1].upper() in letters else None
    for pattern in (_POINTED_AT, _BRACKETED, _STANDS_ALONE):
        found = {_letter(match) for match in pattern.finditer(text)} & set(letters)
        if found:
            return found.pop() if len(found) == 1 and not _contradicted(text, letters, pattern) else None
    return None


def option_by_text(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the option whose text the answer is (but for case, white space, dollars and a full stop), or of the only
    one whose text occurs in it as whole words; a text within a longer option that occurs does not count, nor does a lone
    letter ("a" is an article), nor one that is denied ("not 12 cm"). None otherwise."""
    plain = _plain(answer)
    texts = [_plain(choice) for choice in choices]
    same = [letter for letter, text in zip(ascii_uppercase, texts, strict=False) if text and text == plain]
    if same:
        return same[0] if len(same) == 1 else None
    found = set()
    by_length = sorted(zip(texts, ascii_uppercase, strict=False), key=lambda pair: -len(pair[0]))
    for text, letter in by_length:
        if text and not (len(text) == 1 and text.isalpha()):
            pattern = re.compile(rf"(?<![\w.\-−]){re.escape(text)}(?!\w|[.,]\d)")
            plain, count = pattern.subn("\n", plain)
            if count:
                found.add(letter)
    if len(found) != 1:
        return None
    letter = found.pop()
    denied = rf"\bnot (?:(?:a|an|the) )?{re.escape(texts[ascii_uppercase.index(letter)])}(?!\w)"
    return None if re.search(denied, _plain(answer)) else letter


def chosen_option(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer chooses, by its letter or else by its text; None if by neither."""
    if not choices:
        return None
    exact = option_by_text(answer, choices) if len(_plain(answer)) > 1 else None
    if exact is not None and _plain(answer) == _plain(choices[ascii_uppercase.index(exact)]):
        return exact  # an option like "A and C" or "I, II" must not be read as letters
    letter = option_letter(answer, len(choices))
    return letter if letter is not None else option_by_text(answer, choices)


def numbers(text: str) -> tuple[str, ...]:
    """The numbers in a text in order, in decimals: signs kept, thousands commas taken out. Digits inside words (`x1`, `H2O`)
    are none."""
    return tuple(match.replace(",", "").replace("−", "-") for match in _NUMBER.findall(text))


def only_number(text: str) -> str | None:
    """The text's number if it holds but one (told several times or not), else None. A number that is denied ("not 8") is not
    told."""
    found = set(numbers(_DENIED_NUMBER.sub(" ", text)))
    return found.pop() if len(found) == 1 else None


def yes_or_no(answer: str) -> str | None:
    """ "yes" or "no": what the answer begins with, or the only one of the two that it holds; None otherwise."""
    plain = _EMPHASIS.sub("", WRAPPER.sub(r"\1", answer)).strip().lower()
    found = [word.lower() for word in _YES_NO.findall(plain)]
    if found and plain.startswith(found[0]):
        return found[0]
    return found[0] if len(set(found)) == 1 else None


def _lists_letters(text: str, end: int) -> bool:
    """Whether behind its first letter a text goes on with others: `A, C`, `A), (C)`."""
    return (
        re.match(r"\s*(?:[,;&]|and\b|or\b)?\s*[(\[]?[A-Za-z](?![A-Za-z'’])[)\].]?\s*(?:$|[,;&]|and\b|or\b)", text[end:])
        is not None
    )


def _offers_several(text: str) -> bool:
    """Whether a text offers letters in brackets beside others (`(A) or B`), begins with an option and goes on to another by its
    mark (`A. 12 cm or B. 13 cm`), or lists the options from A on."""
    if _BRACKETED_ROW.search(text) or any(
        len({letter for letter in match.groups() if letter}) > 1 for match in _OFFERED.finditer(text)
    ):
        return True
    first = _FIRST_LETTER.match(text)
    if first is None:
        return False
    rest = text[first.end() :]
    others = {letter for letter in _MARK_BEHIND.findall(rest) if letter != first[1]}
    return bool(others) or (first[1] == "A" and _SECOND_MARK.search(rest) is not None)


def _contradicted(text: str, letters: str, pattern: re.Pattern) -> bool:
    """Whether an "answer is B" goes on to other letters: "answer is B or C"."""
    if pattern is not _POINTED_AT:
        return False
    last = list(pattern.finditer(text))[-1]
    goes_on = re.match(r"\s*[)\]]?\s*(?:,|;|/|&|and\b|or\b)+\s*(?:option\s*)?[(\[]?([A-Z])\b(?!['’])", text[last.end() :])
    return goes_on is not None and goes_on[1] in letters and goes_on[1] != _letter(last)


def _letter(match: re.Match) -> str:
    return next(letter for letter in match.groups() if letter).upper()


def _plain(text: str) -> str:
    """A text in lower case with single spaces, without dollars, emphasis, LaTeX' text commands and a full stop."""
    text = WRAPPER.sub(r"\1", _EMPHASIS.sub("", text)).replace("$", "")
    return " ".join(text.split()).rstrip(".").rstrip().casefold()
