"""`octopus-mcore convert`, for a checkout that is not installed: `python tools/convert_checkpoint.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from octopus_mcore.cli.convert import app  # noqa: E402

if __name__ == "__main__":
    app()
