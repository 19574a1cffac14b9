"""How the scores of a calibration's texts are spread, as counts small enough for its file. Needs NumPy; knows no file and no model."""

import numpy as np

from app.scoring.sample import FloatArray, Sample
from app.scoring.thresholds import Histogram

BINS = 30
TAIL = 0.005  # share of the texts at either end that may lie beyond the outermost edge: one strange text must not stretch the axis
DIGITS = 6  # significant digits of an edge


def histogram_of(sample: Sample, sign: int, logarithmic: bool = False) -> Histogram | None:
    """Bins of equal width, or of equal ratio for scores whose logarithm is the natural scale. None if the texts hardly differ.

    `sign` turns the sample's scores back into the method's own.
    """
    scores = sign * sample.score
    edges = _edges(np.log(scores) if logarithmic else scores)
    edges = np.exp(edges) if logarithmic else edges
    rounded = [float(f"{edge:.{DIGITS}g}") for edge in edges]
    if any(not after > before for before, after in zip(rounded, rounded[1:], strict=False)):
        return None
    human, machine = (_counts(scores[sample.machine == side], np.array(rounded)) for side in (False, True))
    return Histogram(edges=tuple(rounded), human=human, machine=machine)


def _edges(scores: FloatArray) -> FloatArray:
    low, high = np.quantile(scores, [TAIL, 1 - TAIL])
    return np.linspace(low, high, BINS + 1)


def _counts(scores: FloatArray, edges: FloatArray) -> tuple[int, ...]:
    inside = np.clip(scores, edges[0], edges[-1])
    return tuple(int(count) for count in np.histogram(inside, edges)[0])
