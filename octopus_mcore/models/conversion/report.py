"""What a conversion says of itself: `report.json` in the folder that it wrote."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octopus_mcore import __version__
from octopus_mcore.models.checkpoint_folder import REPORT_FILE, write_json
from octopus_mcore.models.conversion.source import Source


@dataclass(frozen=True)
class Report:
    """A finished conversion. `resumed_files` were found finished when it began; `sha256` is of all names and checksums: the
    same for the same weights in either form."""

    target: Path
    parameters: int
    bytes: int
    sha256: str
    files: int
    resumed_files: int


def write_report(
    folder: Path, source: Source, receipts: Mapping[str, Mapping[str, Any]], target: Path, resumed_files: int
) -> Report:
    """Writes the report of a conversion into its draft.

    Args:
        folder: where to write.
        source: what was converted.
        receipts: by file, its length, checksum and the records of its tensors.
        target: the folder's final name.
        resumed_files: how many files another process had finished.
    """
    tensors = {name: values for receipt in receipts.values() for name, values in receipt["tensors"].items()}
    tensors = {name: tensors[name] for name in source.tensors}
    report = Report(target, source.parameters, source.nbytes, weights_digest(tensors), len(receipts), resumed_files)
    content = {
        "octopus_mcore": __version__,
        "source": {"kind": source.kind, "path": str(source.path)},
        "architecture": source.shape.hf.model_type,
        "parameters": report.parameters,
        "bytes": report.bytes,
        "dtypes": dict(Counter(values["dtype"] for values in tensors.values())),
        "sha256": report.sha256,
        "files": {name: {"bytes": receipt["bytes"], "sha256": receipt["sha256"]} for name, receipt in receipts.items()},
        "tensors": tensors,
    }
    write_json(folder / REPORT_FILE, content)
    return report


def weights_digest(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    """One checksum for all tensors, whatever their order."""
    return hashlib.sha256(json.dumps(dict(tensors), sort_keys=True).encode()).hexdigest()
