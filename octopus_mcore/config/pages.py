"""Generated pages of `docs/`: written, or compared with what is there."""

from __future__ import annotations

from pathlib import Path


def write_or_check(file: Path, text: str, check: bool) -> tuple[bool, str]:
    """Writes the page, or with `check` only compares; returns whether the file is now up to date, and a message."""
    if check:
        current = file.is_file() and file.read_text(encoding="utf-8") == text
        return current, f"{file} is {'up to date' if current else 'out of date: run `make docs`'}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return True, f"wrote {file}"
