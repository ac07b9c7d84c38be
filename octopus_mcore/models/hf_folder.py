"""Hugging Face checkpoint folders: reading tensors shard by shard, and writing a weight stream as a folder that loads anywhere.

Reading holds one bucket in memory, writing one shard and its bytes; neither ever holds the model. A folder that was written
here says in a manifest what its weights' bytes were in memory, so that anybody can see whether they still are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import AutoConfig, PretrainedConfig

from octopus_mcore.models.checkpoint_folder import REPORT_FILE, write_json
from octopus_mcore.models.families import TIED_HEAD, expected_tensors
from octopus_mcore.models.safetensors_file import dtype_name, read_header
from octopus_mcore.models.weight_stream import WeightItem, WeightStream

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MANIFEST_FILE = "checksums.json"
"""Size and SHA-256 of each weight file: `{"files": {name: {"bytes": …, "sha256": …}}}`."""
_COMPANIONS = (".json", ".jinja", ".txt", ".model")
"""Endings of the files beside the weights that a checkpoint needs: configuration, tokenizer, processors, chat template."""
_GIB = 2**30


def checked_items(stream: WeightStream, shapes: Mapping[str, torch.Size], tied: bool, where: str) -> Iterator[WeightItem]:
    """The stream's items one by one, held against the model's tensors; `where` opens the messages.

    With `tied` an output matrix in the stream is passed over: it is the embedding under another name, and Hugging
    Face leaves it out as well.

    Raises:
        ValueError: a tensor is unknown, comes twice, has another shape, is quantised, or is missing when the stream ends.
    """
    missing = set(shapes) - ({TIED_HEAD} if tied else set())
    for item in chain.from_iterable(stream):
        if tied and item.name == TIED_HEAD:
            continue
        if item.name not in shapes:
            raise ValueError(f"{where}: the stream holds {item.name!r}, which the model does not have")
        if item.role != "weight":
            raise ValueError(f"{where}: {item.name} comes as {item.role}; only full-precision weights can be taken")
        if item.tensor.shape != shapes[item.name]:
            raise ValueError(f"{where}: {item.name} has shape {list(item.tensor.shape)}, expected {list(shapes[item.name])}")
        if item.name not in missing:
            raise ValueError(f"{where}: the stream holds {item.name!r} twice")
        missing.remove(item.name)
        yield item
        del item  # its memory may go before the next one takes its own
    if missing:
        names, more = sorted(missing)[:3], len(missing) - 3
        raise ValueError(f"{where}: the stream ended without {', '.join(names)}{f' and {more} more' if more > 0 else ''}")


class HFFolder:
    """A checkpoint folder whose weights are safetensors, in one file or in indexed shards.

    Raises:
        FileNotFoundError: the folder, its config.json, its weights or a shard is missing (the message names the file).
        ValueError: the index is not valid, a shard cannot be read, or a shard lacks a tensor that the index promises.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise FileNotFoundError(f"{self.path}: expected a Hugging Face checkpoint folder, found no config.json in it")
        self._shard_of = self._read_single() if (self.path / SINGLE_FILE).is_file() else self._read_index()

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration, read anew."""
        return AutoConfig.from_pretrained(str(self.path))

    def files(self) -> dict[str, str]:
        """Tensor name → name of the file that holds it."""
        return dict(self._shard_of)

    def names(self) -> list[str]:
        """Names of all tensors, shard by shard."""
        return list(self._shard_of)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU. Raises ValueError when the folder does not hold it."""
        if name not in self._shard_of:
            raise ValueError(f"{self.path} holds no tensor {name!r}; the checkpoint is incomplete or of another model")
        with self._open(self._shard_of[name]) as shard:
            return shard.get_tensor(name)

    def stream(self, bucket_bytes: int = _GIB) -> WeightStream:
        """All tensors in buckets of at most `bucket_bytes` (a larger tensor makes a bucket of its own)."""
        bucket, size = [], 0
        for name in self._shard_of:
            tensor = self.tensor(name)
            if bucket and size + tensor.nbytes > bucket_bytes:
                yield bucket
                bucket, size = [], 0
            bucket.append(WeightItem(name, tensor))
            size += tensor.nbytes
        if bucket:
            yield bucket

    def _read_single(self) -> dict[str, str]:
        with self._open(SINGLE_FILE) as shard:
            return dict.fromkeys(shard.keys(), SINGLE_FILE)

    def _read_index(self) -> dict[str, str]:
        """Tensor name → shard file, ordered by shard, after checking that every shard holds what it should."""
        index = self.path / INDEX_FILE
        if not index.is_file():
            raise FileNotFoundError(f"{self.path}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither")
        try:
            shard_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index}: expected a JSON object with a weight_map ({error!r})") from error
        for name, file in shard_of.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{index}: weight_map names {file!r} for {name!r}, which is no file of this folder")
        if not shard_of:
            raise ValueError(f"{index}: weight_map names no tensor")
        files = sorted(set(shard_of.values()))
        absent = {file: name for name, file in reversed(shard_of.items()) if not (self.path / file).is_file()}
        if absent:
            missing = ", ".join(f"{file} (with {absent[file]!r})" for file in sorted(absent))
            raise FileNotFoundError(f"{index} names {len(files)} shards, but {missing} is not in the folder")
        for file in files:
            with self._open(file) as shard:
                lacking = {name for name, at in shard_of.items() if at == file} - set(shard.keys())
            if lacking:
                raise ValueError(f"{self.path / file} lacks {sorted(lacking)[0]!r}, which {INDEX_FILE} says it holds")
        return dict(sorted(shard_of.items(), key=lambda entry: entry[1]))

    def _open(self, file: str) -> safe_open:
        try:
            return safe_open(self.path / file, framework="pt")
        except SafetensorError as error:
            read_header(self.path / file)  # says more of a file that is cut off
            raise ValueError(
                f"{self.path / file} is not a readable safetensors file ({error}); an interrupted download or an LFS pointer?"
            ) from error


def verify_hf_folder(folder: str | os.PathLike) -> None:
    """Reads all weight files of a folder that `save_hf_folder` wrote and compares them with its manifest.

    Raises:
        ValueError: the manifest or a file is missing, shorter, longer or other than it was written; the message names it.
    """
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST_FILE} cannot be read ({error!r}): the folder is incomplete") from error
    for name, written in files.items():
        try:
            with (folder / name).open("rb") as file:
                size, digest = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
        if size != written["bytes"]:
            raise ValueError(
                f"{folder / name} has {size} bytes, {written['bytes']} were written: cut off, or the disk is full?"
            )
        if digest != written["sha256"]:
            raise ValueError(
                f"{folder / name} has SHA-256 {digest}, not the {written['sha256']} of the bytes that were written"
            )


def save_hf_folder(
    stream: WeightStream, target: str | os.PathLike | None, template: str | os.PathLike, shard_bytes: int = 2 * _GIB
) -> Path | None:
    """Writes the stream as a checkpoint folder and returns it. Collective: ranks that do not write pass `target=None`.

    Everything but the weights comes from the folder `template`, with the configuration's dtype set to the stream's. The folder
    appears complete and on the storage (fsync) or not at all, and replaces an earlier checkpoint at `target`. Memory: one shard
    and the bytes of its file. After an error the stream is still iterated to its end, so that no other rank waits for this one.

    Raises:
        FileExistsError: `target` is something else than a checkpoint folder.
        ValueError: the stream's tensors are not those of the template's configuration.
    """
    try:
        return None if target is None else _write(stream, Path(target), Path(template), shard_bytes)
    finally:
        for _ in stream:
            pass


def _write(stream: WeightStream, target: Path, template: Path, shard_bytes: int) -> Path:
    if target.exists() and not (target / "config.json").is_file():
        raise FileExistsError(f"{target} exists and is no checkpoint folder; remove it or choose another place")
    config = AutoConfig.from_pretrained(str(template))
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        writer = _ShardWriter(draft, shard_bytes)
        for item in checked_items(stream, expected_tensors(config), bool(config.tie_word_embeddings), f"writing {target}"):
            writer.add(item)
        writer.finish()
        copy_companions(template, draft)
        declare_dtype(draft / "config.json", writer.dtypes)
        for file in (*draft.iterdir(), draft):
            settle(file)
        _swap(draft, target)
        settle(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


class _ShardWriter:
    """Collects tensors on the CPU and writes a shard whenever the next tensor would exceed the limit."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder = folder
        self.limit = shard_bytes
        self.shard_of: dict[str, int] = {}
        self.dtypes: set[torch.dtype] = set()
        self._pending: dict[str, torch.Tensor] = {}
        self._sums: list[dict[str, int | str]] = []
        self._total = 0

    def add(self, item: WeightItem) -> None:
        """Takes a copy of the tensor: the stream may reuse its memory."""
        pending = sum(tensor.nbytes for tensor in self._pending.values())
        if self._pending and pending + item.tensor.nbytes > self.limit:
            self._flush()
        self._pending[item.name] = item.tensor.detach().to("cpu", copy=True).contiguous()
        self.shard_of[item.name] = len(self._sums)
        self.dtypes.add(item.dtype)
        self._total += item.tensor.nbytes

    def finish(self) -> None:
        """Writes what is left, gives the shards their final names and writes the manifest, and the index if there is more than
        one."""
        self._flush()
        final = shard_names(len(self._sums))
        for shard, name in enumerate(final):
            self._draft(shard).rename(self.folder / name)
        manifest = dict(zip(final, self._sums, strict=True))
        write_index(self.folder, manifest, {name: final[shard] for name, shard in self.shard_of.items()}, self._total)

    def _flush(self) -> None:
        content = save(self._pending, metadata={"format": "pt"})
        self._draft(len(self._sums)).write_bytes(content)
        self._sums.append({"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        self._pending = {}

    def _draft(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.partial"


def shard_names(count: int) -> list[str]:
    """Names of the weight files of a folder with so many."""
    return [SINGLE_FILE] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]


def write_index(folder: Path, manifest: Mapping[str, Mapping[str, Any]], file_of: Mapping[str, str], nbytes: int) -> None:
    """Writes the manifest (by file, its length and SHA-256) and, where there are several files, the index of tensors."""
    write_json(folder / MANIFEST_FILE, {"files": manifest})
    if len(manifest) > 1:
        content = {"metadata": {"total_size": nbytes}, "weight_map": dict(sorted(file_of.items()))}
        write_json(folder / INDEX_FILE, content)


def settle(path: Path) -> None:
    """Returns when the file or folder is on the storage, not only on its way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_companions(template: Path, folder: Path) -> None:
    """Copies what stands beside the weights: configuration, generation defaults, tokenizer, processors, chat template."""
    for file in sorted(template.iterdir()):
        about_weights = file.name in (MANIFEST_FILE, REPORT_FILE) or file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COMPANIONS and not about_weights:
            shutil.copyfile(file, folder / file.name)


def declare_dtype(file: Path, dtypes: set[torch.dtype]) -> None:
    """Writes the weights' dtype into config.json, unless it stands there and nothing else does: Transformers converts to the
    declared one when it loads."""
    config = json.loads(file.read_text(encoding="utf-8"))
    parts = [part for part in (config, config.get("text_config"), config.get("vision_config")) if part is not None]
    dtype = dtype_name(next(iter(dtypes)))
    declared = [part.get("dtype", part.get("torch_dtype")) for part in parts]
    if len(dtypes) == 1 and (declared[0] != dtype or not {*declared} <= {dtype, None}):
        for part in parts:
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
        write_json(file, config)


def _swap(draft: Path, target: Path) -> None:
    """Renames the draft to the target; an earlier checkpoint there goes only once the new one is complete."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
