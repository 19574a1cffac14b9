"""Chooses the calibration that the verdicts on a served model's scores use. Reads files once, at start; sees no text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.engine.request import Facts
from app.schemas import Method
from app.scoring.calibration import Calibration, calibrations_for, identity_of, load
from app.settings import ModelSettings

NO_CALIBRATION = "there is no calibration for this model (`python -m app.calibrate` makes one)"


@dataclass(frozen=True, slots=True)
class CalibrationChoice:
    """The calibration that verdicts use, and those of the requested `methods` that it applies to; or the `reason` why there is none."""

    calibration: Calibration | None = None
    methods: frozenset[Method] = frozenset()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Detector:
    """The calibrations that may apply to the model of `settings`, in order of preference."""

    settings: ModelSettings
    calibrations: Sequence[Calibration]

    def choose(self, methods: Sequence[Method], facts: Facts) -> CalibrationChoice:
        """The first calibration that applies to the served models for at least one of the methods."""
        served = identity_of(self.settings, facts)
        reason = None
        for calibration in self.calibrations:
            mismatches = {method: calibration.mismatch(served, method) for method in methods}
            applicable = frozenset(method for method, mismatch in mismatches.items() if mismatch is None)
            if applicable:
                return CalibrationChoice(calibration, applicable)
            if calibration.models.performer == served.performer:  # why another model's calibration does not apply would explain nothing
                reason = reason or mismatches[methods[0]]
        return CalibrationChoice(reason=reason or NO_CALIBRATION)


def detector_of(settings: ModelSettings) -> Detector:
    """Prefers the calibration that the settings name to the one beside the model. Raises `SetupError` for a broken file."""
    configured = [] if settings.calibration is None else [load(Path(settings.calibration))]
    return Detector(settings, (*configured, *calibrations_for(settings.path)))
