"""Which calibration the verdicts on a served model's scores may rest on, or why none. Reads files once, at the start; knows no text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.engine.request import Facts
from app.schemas import Method
from app.scoring.calibration import Calibration, load, models_of, ready
from app.settings import ModelSettings

NONE = "no calibration comes with this model (`python -m app.calibrate` makes one)"


@dataclass(frozen=True, slots=True)
class Ground:
    """What verdicts rest on: a calibration, for those of the methods asked for that it belongs to; or the reason why there is none."""

    calibration: Calibration | None = None
    methods: frozenset[Method] = frozenset()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Detector:
    settings: ModelSettings
    calibrations: Sequence[Calibration]

    def choose(self, methods: Sequence[Method], facts: Facts) -> Ground:
        """The first that belongs to what is served by one of the methods."""
        served = models_of(self.settings, facts)
        reason = None
        for calibration in self.calibrations:
            found = {method: calibration.mismatch(served, method) for method in methods}
            fitting = frozenset(method for method, wrong in found.items() if wrong is None)
            if fitting:
                return Ground(calibration, fitting)
            if calibration.models.performer == served.performer:  # another model's is none of this one's business
                reason = reason or found[methods[0]]
        return Ground(reason=reason or NONE)


def detector_of(settings: ModelSettings) -> Detector:
    """The calibration that the settings name before those that come with the model. Raises `SetupError` for a broken file."""
    own = [] if settings.calibration is None else [load(Path(settings.calibration))]
    return Detector(settings, (*own, *ready(settings.path)))
