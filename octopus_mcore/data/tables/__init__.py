"""Files of records, behind one door: `open_table`. Every record comes with its place, so that errors can name file and row."""

from octopus_mcore.data.tables.opening import from_hub, open_table
from octopus_mcore.data.tables.records import PIECE, Pieces, Record, RowError, Table

__all__ = ["PIECE", "Pieces", "Record", "RowError", "Table", "from_hub", "open_table"]
