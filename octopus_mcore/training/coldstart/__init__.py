"""Rows for a supervised cold start: `octopus-mcore coldstart` (docs/cold_start.md).

`pipeline.py` is the loop: sample inputs (`attempts.py`) until enough of each kind are found (`selection.py`), have them
corrected (`correctors.py`), let through what passes the filters (`filters.py`). Both steps write journals, and everything else
follows from these: what is done next, the rows, the report (`outcome.py`). So a run that was killed goes on where it was.
"""
