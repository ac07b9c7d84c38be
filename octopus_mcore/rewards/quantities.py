r"""Numbers with units: what a text says a quantity is, and when two are the same.

A number may be written as a decimal, `a/b`, `\frac{a}{b}`, a mixed number, or with a power of ten; with thousands apart
(`1,234.5`, `1.234,5`, `1 234`, `1{,}234`) and with a decimal comma (`1,5`). `1,234` is read as English writes it, 1234, and
`1.234` as 1.234.

Units are converted where there is one way to do it: lengths, areas and volumes in mm, cm, dm, m, km; masses in mg, g, kg;
times in s, min, h; litres in ml, l. Nothing else is: not inches, feet and miles, not compound units (km/h, g/cm^3), not
currencies, not °C and °F, not degrees and radians. Their names must agree.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from octopus_mcore.rewards.choices import WRAPPER

_BASES = {
    "length": {"mm": 1e-3, "cm": 1e-2, "dm": 1e-1, "m": 1.0, "km": 1e3},
    "mass": {"mg": 1e-6, "g": 1e-3, "kg": 1.0},
    "time": {"s": 1.0, "min": 60.0, "h": 3600.0},
    "volume": {"ml": 1e-3, "l": 1.0},
}
_FACTORS = {unit: (dimension, factor) for dimension, units in _BASES.items() for unit, factor in units.items()}

_NAMES = {
    prefix + stem: short + unit
    for prefix, short in {"milli": "m", "centi": "c", "deci": "d", "kilo": "k", "": ""}.items()
    for stem, unit in {"meter": "m", "metre": "m", "gram": "g", "liter": "l", "litre": "l"}.items()
}
_NAMES |= {"sec": "s", "second": "s", "minute": "min", "hour": "h", "hr": "h", "percent": "%", "dollar": "usd", "euro": "€"}
_NAMES |= {"inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "pound": "lb"}
_NAMES |= {"degree": "deg", "degree celsius": "degc", "celsius": "degc", "degree fahrenheit": "degf", "deg c": "degc"}
_NAMES |= {"deg f": "degf", "kmh": "km/h", "kph": "km/h", "kilometers per hour": "km/h", "meters per second": "m/s"}

_TYPESET = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\(?:left|right)(?![a-zA-Z])|~|\{,\}|[\u00a0\u2009\u202f]")
_DEGREE = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ)|\\circ|\\degree|°")
_CURRENCY = re.compile(r"([+-]?) ?(usd|[€£¥₹]) ?(?=[\d.])")
_NAMED = re.compile(r"(?:\\?[A-Za-z]{1,10} ?=|\\approx(?![a-zA-Z])|≈|=) ?")
_FRACTION = re.compile(r"(?:(?<=\d) ?)?\\[dt]?frac ?(?:\{([^{}]+)\} ?\{([^{}]+)\}|(\d)(\d))")
_POWER_OF_TEN = re.compile(r" ?(?:\\times|\\cdot|×|\*) ?10 ?\^ ?\{?([+-]?\d{1,4})\}?")
_TEN_ALONE = re.compile(r"([+-]?)10 ?\^ ?\{?([+-]?\d{1,4})\}?")

_GROUPED = re.compile(r"(?<=\d)[,'’](?=\d{3}(?:\D|$))")
_SPACED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?![\d/])")
_DOTTED = re.compile(r"[+-]?\d{1,3}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})(?![\d.,])")
_DECIMAL_COMMA = re.compile(r"([+-]?(?:0(?=,)|\d+(?=,(?:\d{1,2}|\d{4,})(?!\d)))),(\d+)(?![\d,])")

_DIGITS = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_QUANTITY = re.compile(
    rf"([+-]?) ?(?:(\d+) (?={_DIGITS} ?/))?({_DIGITS}) ?(?:/ ?([+-]?{_DIGITS}))? ?(\D*?(?:\^ ?\{{? ?[23] ?\}}?)?)"
)
_POWER = re.compile(r"(.*?) ?(?:\^ ?\{? ?([23]) ?\}?|([²³]))")
_WORD = r"(?:[^\W\d_]+|\\Omega|\\mu ?[A-Za-z]+)"
_UNIT_WORDS = re.compile(rf"%|[€£¥₹]|{_WORD}(?:[ ./·⋅*-]+{_WORD})*")
_SHORT_UNITS = frozenset("m g s h l L V A W N J K C F T".split())
_SHORT_UNITS |= frozenset("mm cm dm km nm mg kg ml cl dl ms ns us hr in ft yd mi lb oz sq cu cc pt px pp ly".split())
_SHORT_UNITS |= frozenset("hz pa kw mw kv mv ma kj mj ev kn kb mb gb tb db st nd rd th am pm ad bc".split())
"""Words of one or two Latin letters that are units; any other is taken for a variable (`5x`, `5ab`)."""
_NO_UNITS = frozenset("and but not nor plus minus over mod choose squared cubed factorial half halves thirds".split())
_NO_UNITS |= frozenset("sqrt log exp sin cos tan alpha beta gamma delta theta lambda phi omega".split())
_SCALES = {"dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SPELLED_POWER = re.compile(r"(square|sq\.?|cubic|cu\.?) (.+)")


class Quantity(NamedTuple):
    """A value and its unit: `name` ("" for none), and `dimension` and `factor` to its base where it can be converted."""

    value: float
    name: str
    dimension: str = ""
    factor: float = 1.0


def number_equal(answer: str, truth: str, tolerance: float = 0.01) -> bool:
    r"""Equality of numbers within a relative tolerance (absolute for a truth of 0), units converted.

    A unit or a percent sign on one side only is overlooked (`12 %` is 12 and also 0.12). Falls back to string equality where
    the truth is no number.
    """
    given, wanted = quantity(answer), quantity(truth)
    if wanted is None:
        return answer.strip() == truth.strip()
    if given is None:
        return False
    return any(abs(value - wanted.value) <= tolerance * (abs(wanted.value) or 1.0) for value in _readings(given, wanted))


def _readings(given: Quantity, wanted: Quantity) -> list[float]:
    """What the given quantity may be in the unit of the wanted one; nothing where they are of different kinds."""
    if given.name == wanted.name:
        return [given.value]
    if given.name and wanted.name:
        same = given.dimension and given.dimension == wanted.dimension
        return [given.value * given.factor / wanted.factor] if same else []
    if "%" in (given.name, wanted.name):
        return [given.value, given.value / 100 if given.name == "%" else given.value * 100]
    return [given.value]


def quantity(text: str) -> Quantity | None:
    """The quantity that a text is, whole; None where it is anything else. Takes linear time."""
    match = _QUANTITY.fullmatch(_plain(text))
    if match is None:
        return None
    sign, whole, numerator, denominator, unit = match.groups()
    scale, unit = _scaled(unit.strip(" ."))
    below = float(denominator) if denominator else 1.0
    value = (float(whole or 0) + float(numerator) / below) * scale if below and _is_unit(unit) else math.nan
    return Quantity(-value if sign == "-" else value, *_unit(unit)) if math.isfinite(value) else None


def _plain(text: str) -> str:
    """The text without typesetting, its number as Python writes it and a currency behind it."""
    text = WRAPPER.sub(r" \1", text).replace("\u2212", "-").replace(r"\%", "%").replace(r"\$", "usd")
    text = text.replace("$", "usd" if text.count("$") == 1 else "")  # two are LaTeX's
    # Single spaces keep the patterns linear: runs of them could be split in many ways among their parts.
    text = " ".join(_DEGREE.sub("deg", _TYPESET.sub("", text)).split())
    if named := _NAMED.match(text):
        text = text[named.end() :]
    if currency := _CURRENCY.match(text):
        text = f"{currency[1]}{text[currency.end() :]} {currency[2]}"
    text = _FRACTION.sub(lambda found: f" {found[1] or found[3]}/{found[2] or found[4]}", text).strip()
    text = _english(text).replace("- ", "-", 1) if text.startswith("- ") else _english(text)
    return _TEN_ALONE.sub(r"\g<1>1e\2", text, count=1) if _TEN_ALONE.match(text) else _POWER_OF_TEN.sub(r"e\1", text)


def _english(text: str) -> str:
    """A number at the beginning without marks between thousands, and with a point before its decimals."""
    if dotted := _DOTTED.match(text):
        return dotted[0].replace(".", "").replace(",", ".") + text[dotted.end() :]
    if comma := _DECIMAL_COMMA.match(text):
        return f"{comma[1]}.{comma[2]}{text[comma.end() :]}"
    if spaced := _SPACED.match(text):
        return spaced[0].replace(" ", "") + text[spaced.end() :]
    return _GROUPED.sub("", text)


def _scaled(unit: str) -> tuple[float, str]:
    """What stands behind a number, without the word that multiplies it: `million people` is 1e6 and people."""
    word, _, rest = unit.partition(" ")
    scale = _SCALES.get(word.casefold())
    return (1.0, unit) if scale is None else (scale, rest)


def _is_unit(text: str) -> bool:
    """Whether what stands behind a number names what is counted. What changes the number does not (`5\\pi`, `5x`, `5!`, `5²`),
    nor does a sentence that goes on (`5 or six`)."""
    power = _POWER.fullmatch(text)
    text = power[1] if power else text
    if not text:
        return power is None
    if _UNIT_WORDS.fullmatch(text) is None:
        return False
    return all(
        (len(word) > 2 or word in _SHORT_UNITS or len(word) == 2 and word.casefold() in _SHORT_UNITS)
        and word.casefold() not in _NO_UNITS
        if word.isascii()
        else not any("α" <= letter <= "ω" and letter != "μ" or not letter.isalpha() and letter != "\\" for letter in word)
        for word in re.findall(_WORD, text)
    )


def _unit(text: str) -> tuple[str, str, float]:
    """Name, dimension and factor of a unit as it is written."""
    text, power = text.strip(" .").casefold(), 1
    if text.startswith("%"):
        return "%", "", 1.0
    if written := _POWER.fullmatch(text):
        text, power = written[1], 2 if "2" in (written[2] or "") or written[3] == "²" else 3
    elif spelled := _SPELLED_POWER.fullmatch(text):
        text, power = spelled[2], 2 if spelled[1].startswith("s") else 3
    name = _NAMES.get(text) or _NAMES.get(_singular(text)) or (text if text in _FACTORS else _singular(text))
    dimension, factor = _FACTORS.get(name, ("", 1.0))
    if power == 1:
        return name, dimension, factor
    return f"{name}^{power}", f"{dimension}^{power}" if dimension == "length" else "", factor**power


def _singular(text: str) -> str:
    plural = (len(word) > 2 and word.isalpha() and word.endswith("s") and word[-2] not in "us" for word in text.split())
    return " ".join(word[:-1] if ends else word for word, ends in zip(text.split(), plural, strict=True))
