"""Blocks between tags, found in one pass: a regular expression with a lazy middle takes quadratic time where tags never
close."""

from __future__ import annotations


def blocks(text: str, tag: str) -> list[str]:
    """The contents of all `<tag>…</tag>` in order; each ends at the first closing tag behind its opening one."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    found: list[str] = []
    start = text.find(opening)
    while start >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        found.append(text[start + len(opening) : end])
        start = text.find(opening, end + len(closing))
    return found


def each_once(text: str, *tags: str) -> bool:
    """Whether each tag is opened and closed exactly once."""
    return all(text.count(f"<{tag}>") == 1 == text.count(f"</{tag}>") for tag in tags)
