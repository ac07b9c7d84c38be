"""Datasets of the hub through its real client: what is fetched, what the cache answers for, and what an error says.

The server speaks the hub's routes: revision, tree, and files by `resolve`. The client reads its endpoint once, when it is
imported, so that every question here is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.tables.hub import HubReference, choose

COMMIT, OLDER = "a" * 40, "b" * 40
ROOT = Path(__file__).parents[2]


class Hub(BaseHTTPRequestHandler):
    """Two datasets: `owner/name` with two commits, and `owner/gated`."""

    files: dict[str, dict[str, bytes]] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def log_message(self, *arguments) -> None:
        pass

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/datasets/owner/gated"):
            return self.send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        if not path.startswith(("/api/datasets/owner/name", "/datasets/owner/name/resolve")):
            return self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        kind, _, rest = path.partition("owner/name")[2].strip("/").partition("/")
        revision, _, name = ("main", "", "") if not kind else rest.partition("/")
        commit = {"main": COMMIT, "refs": OLDER}.get(revision, revision)
        if revision == "refs":  # refs/pr/1
            name = name.split("/", 2)[2] if name.count("/") > 1 else ""
        if commit not in self.files:
            return self.send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        files = self.files[commit]
        if kind in ("revision", ""):
            siblings = [{"rfilename": file} for file in files]
            info = {"id": "owner/name", "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            return self.send(200, json.dumps(info).encode(), body)
        if kind == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            return self.send(200, json.dumps(tree).encode(), body)
        if name not in files:
            return self.send(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[name]
        self.send(200, content, body, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def table(*problems: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"problem": problems, "answer": ["1"] * len(problems)}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def hub():
    Hub.files[COMMIT] = {
        "README.md": b"# A dataset",
        "data/train-00000-of-00002.parquet": table("a", "b"),
        "data/train-00001-of-00002.parquet": table("c"),
        "data/test-00000-of-00001.parquet": table("d"),
        "extra/rows.json": b'[{"problem": "e", "answer": 1}]',
    }
    Hub.files[OLDER] = {"data/train-00000-of-00001.parquet": table("old")}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import json, sys
from octopus_mcore.data.rows import RowSource
for path, split in json.loads(sys.argv[1]):
    try:
        source = RowSource(path, image_key=None, shuffle=False, split=split)
        rows = source.rows(0, len(source), 0)
        print(json.dumps([[row.uid for row in rows], "".join(row.question for row in rows), source.notes]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def ask(endpoint: str, home: Path, *questions: tuple[str, str | None], offline: bool = False) -> list:
    """What RowSource says to each path and split, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(questions)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_dataset_of_the_hub(hub, tmp_path):
    Hub.asked.clear()
    questions = [
        ("hub:owner/name", "train"),
        ("hub:owner/name@refs%2Fpr%2F1", None),
        ("hub:owner/name/data/test-*.parquet", None),
        (f"hub:owner/name@{COMMIT}/extra/rows.json", None),
        ("hub:owner/name/data", "test"),
        ("hub:owner/name", None),
        ("hub:owner/name/data/dev-*", None),
        ("hub:owner/absent", None),
        ("hub:owner/gated", None),
        ("hub:owner/name@v9", None),
    ]
    train, older, test, extra, folder, *errors = ask(hub, tmp_path, *questions)
    names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    uids = [f"{names[0]}:1@0", f"{names[0]}:2@0", f"{names[1]}:1@0"]
    assert train == [uids, "abc", [f"hub:owner/name: commit {COMMIT}"]]
    assert older[1:] == ["old", [f"hub:owner/name@refs%2Fpr%2F1: commit {OLDER}"]]
    assert (test[1], extra[1], folder[1]) == ("d", "e", "d")
    expected = [
        ("ValueError", "hub:owner/name holds the splits 'test', 'train': expected `split` to name one, found none"),
        ("FileNotFoundError", "no such data file; the repository has data/test-00000-of-00001.parquet, data/train-00000"),
        ("FileNotFoundError", "hub:owner/absent: the hub has no dataset 'owner/absent', or a private one (HF_TOKEN)"),
        ("PermissionError", "hub:owner/gated: accept the terms of owner/gated on the hub, and give a token (HF_TOKEN)"),
        ("FileNotFoundError", "hub:owner/name@v9: owner/name has no revision 'v9'"),
    ]
    for (kind, message), (expected_kind, part) in zip(errors, expected, strict=True):
        assert kind == expected_kind and part in message, message
    fetched = [line for line in Hub.asked if line.startswith("GET /datasets")]
    assert not any("README" in line for line in fetched), "only what is meant is downloaded"


def test_the_cache_answers_where_the_hub_does_not(hub, tmp_path):
    ask(hub, tmp_path, ("hub:owner/name", "train"))
    before = len(Hub.asked)
    whole, part, absent, revision = ask(
        hub,
        tmp_path,
        ("hub:owner/name/data/train-*", None),
        ("hub:owner/name/data/test-*", None),
        ("hub:owner/absent", None),
        ("hub:owner/name@v1", None),
        offline=True,
    )
    assert len(Hub.asked) == before and whole[1] == "abc"
    for kind, message in (part, absent, revision):
        assert kind == "FileNotFoundError" and "the hub cannot be asked (OfflineModeIsEnabled" in message, message
    unreachable = ask("http://127.0.0.1:9", tmp_path, ("hub:owner/name/data/train-*", None), ("hub:owner/other", None))
    assert unreachable[0][1] == "abc" and unreachable[1][0] == "FileNotFoundError", unreachable


@pytest.mark.parametrize("text", ["hub:name", "hub:", "hub:a/b@", "hub:a/b@/c", "hub:a b/c", "hub:/a/b"])
def test_references_that_are_none(text):
    with pytest.raises(ValueError, match=r"expected hub:owner/name\[@revision\]\[/path\], found"):
        HubReference.parse(text)


@given(
    st.builds(
        HubReference,
        st.from_regex(r"[a-zA-Z0-9._-]+/[a-zA-Z0-9._-]+", fullmatch=True),
        st.none() | st.from_regex(r"[a-z0-9.]+", fullmatch=True) | st.just("refs/convert/parquet"),
        st.none() | st.from_regex(r"[a-z*]+(/[a-z.*]+)?", fullmatch=True),
    )
)
@settings(deadline=None)
def test_references_are_read_as_they_are_written(reference):
    assert HubReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("path", "split", "found"),
    [
        ("*/dev-*.parquet", None, ["A/dev-00000-of-00001.parquet", "B/dev-00000-of-00001.parquet"]),
        (
            "**/dev-*.parquet",
            None,
            ["A/dev-00000-of-00001.parquet", "B/c/dev-00000-of-00001.parquet", "B/dev-00000-of-00001.parquet"],
        ),
        ("A", "dev", ["A/dev-00000-of-00001.parquet"]),
        ("*/*.parquet", "test", ["A/test-00001-of-00002.parquet"]),
        ("A", "test", "1 of the 2 files of 'test' are missing, first number 00000"),
        ("B", None, "hub:o/n/B holds data in several folders: B, B/c; name one behind it, or a pattern"),
        (None, "dev", "hub:o/n holds data in several folders: A, B, B/c"),
        ("A/dev-00000-of-00001.parquet", "dev", "split 'dev' has no effect"),
    ],
)
def test_which_files_are_meant(path, split, found):
    names = ["A/dev-00000-of-00001.parquet", "A/test-00001-of-00002.parquet", "B/dev-00000-of-00001.parquet"]
    names += ["B/c/dev-00000-of-00001.parquet", "README.md"]
    reference = HubReference("o/n", None, path)
    if isinstance(found, list):
        assert choose(names, reference, split) == found
    else:
        with pytest.raises(ValueError, match=found):
            choose(names, reference, split)
