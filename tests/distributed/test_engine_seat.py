"""All ranks bring weights together to the one engine that has lost them, and every rank gets the answers of all."""

from __future__ import annotations

from tests.distributed.pool import RankPool
from tests.distributed.seat_checks import generate_through_losses


def test_ranks_with_whole_engines_and_without_any_stream_along_for_the_one_that_lost_its_weights(pool: RankPool) -> None:
    lossy, whole, none = pool.run(3, generate_through_losses)
    for report in (lossy, whole, none):
        assert report["parts"] == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5]] and report["versions"] == {7}
        assert report["streams"] == 3, "one for all at the start, one for each loss"
        assert report["losses"] == lossy["losses"]
    assert lossy["answered"] == [0, 1, 2, 3, 4, 5] and whole["answered"] == [1, 2, 3, 4, 5], "nothing is asked twice"
    assert (lossy["updates"], whole["updates"], none["updates"]) == (3, 1, None)
