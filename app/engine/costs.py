"""What a step of so many decoding rows costs, learned from the steps themselves. Pure arithmetic on measured durations."""

from collections import deque

FIRST_ROW = 5.0  # where nothing is known: a step takes as long as so many rows beside those that it has
OBSERVATIONS = 8  # steps that are remembered of each size
KEPT_STEPS = 256  # a size is forgotten when none of so many steps had it: what it costs may have changed


class RowCosts:
    """Sizes are numbers of rows of equal bit length. Of each the duration is the lower quartile of its latest steps: a step that shares its
    cores with others lasts longer, none takes less than it needs.
    """

    def __init__(self) -> None:
        self._latest: dict[int, deque[tuple[float, int]]] = {}  # seconds and rows of the latest steps, by bit length of the rows
        self._measured: dict[int, int] = {}  # number of the latest step, by bit length of the rows
        self._steps = 0
        self._points: list[tuple[int, float]] = []  # rows and seconds, fewest rows first

    def record(self, rows: int, step_s: float) -> None:
        self._steps += 1
        bits = rows.bit_length()
        self._measured[bits] = self._steps
        self._latest.setdefault(bits, deque(maxlen=OBSERVATIONS)).append((step_s, rows))
        for size in [size for size, step in self._measured.items() if step <= self._steps - KEPT_STEPS]:
            del self._measured[size], self._latest[size]
        self._points = sorted(map(_quartile, self._latest.values()))

    def step_s(self, rows: int) -> float | None:
        """Duration of a step of so many decoding rows, on a line between the sizes that were measured; None when none was."""
        points = self._points
        if not points:
            return None
        if len(points) == 1:
            return points[0][1] * (FIRST_ROW + rows) / (FIRST_ROW + points[0][0])
        after = next((index for index, (more, _) in enumerate(points[1:-1], 1) if more >= rows), len(points) - 1)
        (fewer, fewer_s), (more, more_s) = points[after - 1 : after + 1]
        return max(0.0, fewer_s + max(0.0, more_s - fewer_s) * (rows - fewer) / (more - fewer))


def _quartile(steps: deque[tuple[float, int]]) -> tuple[int, float]:
    """The step of which a quarter was faster for its rows, as rows and seconds."""
    ordered = sorted(steps, key=lambda step: step[0] / (FIRST_ROW + step[1]))
    seconds, rows = ordered[len(ordered) // 4]
    return rows, seconds
