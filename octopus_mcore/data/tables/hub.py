"""Datasets on the Hugging Face hub: `hub:owner/name[@revision][/path]`, fetched by its own client into its cache.

The files are chosen from the repository's listing before anything is downloaded. Where the hub cannot be reached, or
HF_HUB_OFFLINE says not to, the cache answers for what it holds. Endpoint, token and place of the cache are the client's own
settings (HF_ENDPOINT, HF_TOKEN, HF_HOME).
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from octopus_mcore.data.tables.shards import SHARD_KINDS, check_complete, of_one_kind, of_split

logger = logging.getLogger(__name__)

PREFIX = "hub:"
_REFERENCE = re.compile(
    r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.+))?"
)
_SHOWN = 8


@dataclass(frozen=True)
class HubReference:
    """A dataset repository, its revision (None: the main branch), and a file, a folder or a pattern of files in it."""

    repository: str
    revision: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubReference:
        """Reads `hub:owner/name[@revision][/path]`; a slash in a revision is written `%2F`. Raises `ValueError`."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise ValueError(f"expected hub:owner/name[@revision][/path], found {text!r}")
        revision = found["revision"]
        path = found["path"] and found["path"].rstrip("/")
        return cls(found["repository"], revision and unquote(revision), path or None)

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{at}{f'/{self.path}' if self.path else ''}"


def fetch(reference: HubReference, split: str | None) -> tuple[Path, list[Path]]:
    """The folder of the repository in the client's cache, named by its commit, and the data files that are meant, in order.

    Raises:
        FileNotFoundError: there is no such repository, revision or file, or the hub cannot be reached and the cache lacks it.
        PermissionError: the repository's terms must be accepted first.
        ConnectionError: a download failed.
        ValueError: it is not clear which files are meant.
    """
    try:
        names = _listed(reference)
    except _Unreachable as error:
        folder = _cached(reference, error)
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        chosen = choose(names, reference, split)
        logger.warning("%s: the hub was not asked (%s); the cache holds commit %s", reference, error, folder.name)
    else:
        chosen = choose(names, reference, split)
        folder = _downloaded(reference, chosen)
    return folder, [folder / name for name in chosen]


def choose(names: Sequence[str], reference: HubReference, split: str | None) -> list[str]:
    """The data files among a repository's `names` that a reference means. Raises as `fetch`."""
    path, where = reference.path, str(reference)
    if path in names:
        if split is not None:
            raise ValueError(f"split {split!r} has no effect: {where} is one file")
        return [path]
    if path is not None and glob.has_magic(path):
        found = [name for name in names if _matches(PurePosixPath(name).parts, PurePosixPath(path).parts)]
    else:
        inside = [name for name in names if path is None or name.startswith(f"{path}/")]
        found = of_one_kind([name for name in inside if PurePosixPath(name).suffix in SHARD_KINDS], where)
        folders = sorted({str(PurePosixPath(name).parent) for name in found})
        if len(folders) > 1:
            raise ValueError(f"{where} holds data in several folders: {_some(folders)}; name one behind it, or a pattern")
    if not found:
        data = [name for name in names if PurePosixPath(name).suffix in (*SHARD_KINDS, ".json")]
        raise FileNotFoundError(f"{where}: no such data file; the repository has {_some(data)}")
    files = of_split([Path(name) for name in found], split, where)
    if path is None or not glob.has_magic(path):
        check_complete(files, where)
    return [file.as_posix() for file in files]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern, folder by folder; `**` stands for any number of folders."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(sorted(names)[:_SHOWN]) or "none") + more


class _Unreachable(Exception):
    """The hub does not answer, or must not be asked."""


def _listed(reference: HubReference) -> list[str]:
    """The names of all files of the repository. Raises as `fetch`, or `_Unreachable`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # This question comes first because it is asked once: the client repeats the next one for a minute.
        found = HfApi().repo_info(reference.repository, repo_type="dataset", revision=reference.revision)
        return HfApi().list_repo_files(reference.repository, repo_type="dataset", revision=found.sha)
    except GatedRepoError as error:
        raise PermissionError(
            f"{reference}: accept the terms of {reference.repository} on the hub, and give a token (HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{reference}: the hub has no dataset {reference.repository!r}, or a private one (HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{reference}: {reference.repository} has no revision {reference.revision!r}") from error
    except HFValidationError as error:
        raise ValueError(f"{reference}: {error}") from error
    except Exception as error:  # the client's transport raises errors of its own, which are no OSErrors
        raise _Unreachable(f"{type(error).__name__}: {error}") from error


def _cached(reference: HubReference, reason: _Unreachable) -> Path:
    """The repository's folder in the cache. Raises `FileNotFoundError` where it lacks what its own listing says is there."""
    try:
        return _snapshot(reference, [reference.path] if reference.path else None, local_files_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{reference}: the hub cannot be asked ({reason}), and the cache does not hold it whole: {error}"
        ) from error


def _downloaded(reference: HubReference, names: Sequence[str]) -> Path:
    """The repository's folder in the cache with these files in it. Raises `ConnectionError`."""
    try:
        folder = _snapshot(reference, [glob.escape(name) for name in names])
    except Exception as error:
        raise ConnectionError(f"{reference}: the download failed: {type(error).__name__}: {error}") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ConnectionError(f"{reference}: the download brought no {missing[0]!r}; the repository has changed meanwhile")
    return folder


def _snapshot(reference: HubReference, patterns: list[str] | None, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    given = {"repo_type": "dataset", "revision": reference.revision, "allow_patterns": patterns}
    return Path(snapshot_download(reference.repository, **given, **options))
