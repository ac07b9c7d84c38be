"""Two groups of three responses whose numbers can be worked by hand; plain Python, so that the programs of other trainers can
read them too (`tests/trl_losses.py`)."""

from __future__ import annotations

import math

REWARDS = [[1.0, 0.0, 0.5], [0.0, 0.0, 3.0]]
"""By group and response."""
OLD = [[0.4, 0.2, 0.5], [0.5, 0.25], [0.1], [0.2, 0.1], [0.3], [0.5, 0.2, 0.1]]
"""π_old of each response's tokens."""
RATIOS = [[1.0, 1.5, 0.5], [0.5, 1.2], [1.25], [0.75, 4.0], [1.1], [1.0, 1.25, 1.26]]
"""π / π_old of them."""

ROWS, TOKENS = len(OLD), sum(map(len, OLD))
R3 = math.sqrt(3)
GROUP = [1.0, -1.0, 0.0, -1 / R3, -1 / R3, 2 / R3]
"""(r − group mean) / group std: the first group has mean 1/2 and std 1/2, the second 1 and √3."""
GROUP_MEAN = [0.5, -0.5, 0.0, -1.0, -1.0, 2.0]
LEAVE_ONE_OUT = [0.75, -0.75, 0.0, -1.5, -1.5, 3.0]
"""The others' means are 1/4, 3/4, 1/2 and 3/2, 3/2, 0."""
BATCH = [value / math.sqrt(1.375) for value in (0.25, -0.75, -0.25, -0.75, -0.75, 2.25)]
"""Mean 3/4; the squares add up to 6.875, over five."""
GROUP_THEN_BATCH = [value / math.sqrt(1.3) for value in GROUP_MEAN]
"""The squares add up to 6.5, over five."""
CRITIC = [[0.5, -1.0, 2.0], [1.0, -1.0], [-2.0], [0.0, -0.5], [1.5], [-1.0, 1.0, -1.0]]
"""Token by token, as a critic would give them."""
