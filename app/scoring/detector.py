"""Chooses the calibration that the verdicts on a served model's scores use. Reads files once, at start; sees no text.

A calibration that the settings name is used alone: where it does not apply, the model is not served (`check_named`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.engine.facts import Facts
from app.engine.request import Tier
from app.errors import InvalidRequest, SetupError
from app.schemas import Granularity, Method
from app.scoring.calibration import OBSERVER_METHODS, Calibration, calibrations_for, identity_of, load
from app.scoring.combined import CombinedModel
from app.scoring.prepare import Preparation
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

NO_CALIBRATION = "there is no calibration for this model (`python -m app.calibrate` makes one)"
SINGLE_METHODS: tuple[Method, ...] = ("fast_detect", "perplexity", "log_rank")  # need neither an observer nor a calibration


@dataclass(frozen=True, slots=True)
class CalibrationChoice:
    """The calibration that verdicts use, and those of the requested `methods` that it applies to; or the `reason` why there is none."""

    calibration: Calibration | None = None
    methods: frozenset[Method] = frozenset()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What a request asks for each of its texts, and the calibration its verdicts use."""

    methods: Sequence[Method]
    choice: CalibrationChoice
    granularity: Granularity = "none"
    target_fpr: float | None = None
    top_tokens: int = 0  # likeliest tokens beside each token
    distributions: bool = False

    @property
    def combined(self) -> CombinedModel | None:
        return self.choice.calibration.combined if self.choice.calibration and "combined" in self.choice.methods else None

    @property
    def min_characters_per_token(self) -> float | None:
        return self.choice.calibration.min_characters_per_token if self.choice.calibration else None

    @property
    def memorised_nats(self) -> float | None:
        return self.choice.calibration.memorised_nats if self.choice.calibration else None

    def preparation(self, tokenizer: Tokenizer, context: int, tier: Tier = "default") -> Preparation:
        """Texts are read as those of the calibration were."""
        calibration = self.choice.calibration
        observe = bool(OBSERVER_METHODS & set(self.methods)) or (self.combined is not None and self.combined.needs_observer)
        collapse, passage_tokens = (calibration.collapse, calibration.passage_tokens) if calibration else (False, None)
        return Preparation(tokenizer, context, collapse, passage_tokens, observe, tier, self.top_tokens)


@dataclass(frozen=True, slots=True)
class Detector:
    """The calibrations that may apply to the model of `settings`, in order of preference."""

    settings: ModelSettings
    calibrations: Sequence[Calibration] = ()

    def choose(self, methods: Sequence[Method], facts: Facts) -> CalibrationChoice:
        """The first calibration that applies to the served models for at least one of the methods."""
        served = identity_of(self.settings, facts)
        reason = None
        for calibration in self.calibrations:
            mismatches = {method: calibration.mismatch(served, method) for method in methods}
            applicable = frozenset(method for method, mismatch in mismatches.items() if mismatch is None)
            if applicable:
                return CalibrationChoice(calibration, applicable)
            if self.settings.calibration is not None or calibration.models.performer == served.performer:
                # why a calibration that nobody named, of another model, does not apply would explain nothing
                reason = reason or mismatches[methods[0]]
        return CalibrationChoice(reason=reason or NO_CALIBRATION)

    def methods(self, facts: Facts) -> list[Method]:
        """The methods that can be asked for, the default one first: `combined` where a calibration has its weights for these models."""
        combined: list[Method] = ["combined"] if self.choose(["combined"], facts).calibration else []
        observed: list[Method] = ["binoculars", "likelihood_ratio"] if facts.observer else []
        return [*combined, *observed, *SINGLE_METHODS]

    def options(
        self,
        facts: Facts,
        methods: Sequence[Method] | None = None,
        granularity: Granularity = "none",
        target_fpr: float | None = None,
        calibrated: bool = True,
    ) -> ScoreOptions:
        """Raises `InvalidRequest` for a method or a rate that cannot be had. `calibrated` False: scores without a verdict."""
        allowed = [method for method in self.methods(facts) if calibrated or method != "combined"]
        for index, method in enumerate(methods or ()):
            if method not in allowed:
                raise InvalidRequest(f"method {method} needs {self._lacking(method, facts, calibrated)}", param=f"methods.{index}")
        asked = tuple(dict.fromkeys(methods or allowed[:1]))
        choice = self.choose(asked, facts) if calibrated else CalibrationChoice(reason="the request asked for no calibration")
        if target_fpr is not None:
            if choice.calibration is None:
                raise InvalidRequest(f"target_fpr needs a calibration: {choice.reason}", param="target_fpr")
            choice.calibration.check_target(target_fpr, choice.methods)
        return ScoreOptions(asked, choice, granularity, target_fpr)

    def _lacking(self, method: Method, facts: Facts, calibrated: bool) -> str:
        if method == "combined":
            reason = self.choose([method], facts).reason if calibrated else "the request asked for none"
            return f"a calibration: {reason}"
        return f"an observer, but no observer model is loaded; {SINGLE_METHODS[0]} needs none"


UNCALIBRATED = Detector(ModelSettings())


def detector_of(settings: ModelSettings) -> Detector:
    """Of the calibration that the settings name; without one, of that beside the model and those that are shipped. Raises `SetupError`
    for a broken file.
    """
    named = settings.calibration
    return Detector(settings, tuple(calibrations_for(settings.path)) if named is None else (load(Path(named)),))


def check_named(settings: ModelSettings, facts: Facts) -> None:
    """Raises `SetupError` for a calibration that the settings name and that applies to the served models for none of its methods."""
    if settings.calibration is None:
        return
    calibration, served = load(Path(settings.calibration)), identity_of(settings, facts)
    mismatches = [calibration.mismatch(served, method) for method in calibration.methods] or ["the calibration covers no method"]
    if None not in mismatches:
        raise SetupError(
            f"model.calibration: {settings.calibration} does not apply: {mismatches[0]}; name one that was made with this model in this "
            "precision, or leave the setting out"
        )
