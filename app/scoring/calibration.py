"""A calibration file: the thresholds and probabilities measured for one pair of models, and the verdict they give for a score.

Plain arithmetic, so the API process can import it. `app.scoring.fitting` produces the numbers.
"""

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from app.engine.facts import Facts
from app.errors import InvalidRequest, SetupError
from app.models.names import base_name
from app.schemas import MIN_SCORED_TOKENS, Method
from app.scoring.combined import CombinedModel
from app.scoring.thresholds import DIRECTIONS, Bucket, FrozenModel, MethodCalibration, Threshold
from app.settings import ModelSettings

FALCON_PATH = Path(__file__).with_name("falcon.json")  # thresholds published with Binoculars, arXiv 2401.12070
SMOLLM2_PATH = Path(__file__).with_name("smollm2.json")  # of the default model, made by `python -m models.detector.default`
OBSERVER_METHODS: frozenset[Method] = frozenset({"binoculars", "likelihood_ratio"})  # need the observer, whatever the calibration
CALIBRATION_FILE = "calibration.json"  # in the folder of the model that it was made with


class ModelIdentity(FrozenModel):
    """Which weights produced the scores, in which precision. `performer` and `observer` are the last parts of the paths.

    A revision of None matches every revision; only published thresholds have it.
    """

    performer: str
    revision: str | None
    observer: str | None
    observer_revision: str | None
    quantize: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with the numbers behind it.

    `p_machine` and its interval `p_low` to `p_high` assume that machine and human texts are equally frequent. They are None if the
    calibration has only published thresholds, and if the score is `outside`: more human-like than that of every text of the calibration, so
    the text is of another kind than those. `measured_fpr`, its 95% interval `fpr_low` to `fpr_high` and `n_human` describe how often
    `threshold` errs on the human texts of the calibration, `found` the share of its `n_machine` machine texts beyond it. `bucket` is the
    range of scored tokens.
    """

    verdict: Literal["machine", "uncertain", "human"]
    p_machine: float | None
    p_low: float | None
    p_high: float | None
    threshold: float
    target_fpr: float | None
    measured_fpr: float | None
    fpr_low: float | None
    fpr_high: float | None
    n_human: int | None
    bucket: str
    outside: bool = False
    found: float | None = None
    n_machine: int | None = None


class Calibration(FrozenModel):
    """The content of a calibration file.

    `collapse`: runs of white space in the calibration's texts were replaced by one blank (`app.scoring.normalize`), so the same is done to
    a text to judge; line breaks tell more about where a text was copied from than about who wrote it. `cut_words`: so many words were
    removed from the beginning of each calibration text, for example an opening that both classes shared; a text to judge keeps its own.
    `passage_tokens`: a text to judge is read in passages of about so many tokens, each without what comes before it, as the texts of the
    calibration were; None: in overlapping windows.
    `min_characters_per_token`: hardly any human text of the calibration is cut into shorter tokens; texts in other languages are.
    `memorised_nats`: a mean surprise per token so far below the human texts' that a text has it only if the model knows it by heart.
    `equal`: other precisions that were shown to give the same verdicts (`python -m models.detector.equal`).
    `refused`: sentences on what the texts were too few to support.
    """

    format: Literal["litmus-calibration"] = "litmus-calibration"
    version: Literal[1] = 1
    made: str
    source: str
    models: ModelIdentity
    collapse: bool
    cut_words: int = Field(0, ge=0)
    passage_tokens: int | None = Field(None, ge=MIN_SCORED_TOKENS)
    min_characters_per_token: float | None = Field(None, gt=0)
    memorised_nats: float | None = Field(None, gt=0)
    combined: CombinedModel | None = None
    equal: tuple[ModelIdentity, ...] = ()
    methods: dict[Method, MethodCalibration]
    refused: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_methods(self) -> Self:
        for method, fitted in self.methods.items():
            if fitted.direction != DIRECTIONS[method]:
                raise ValueError(f"methods.{method}.direction: must be {DIRECTIONS[method]}")
        if "combined" in self.methods and self.combined is None:
            raise ValueError("combined: methods.combined needs its weights")
        return self

    def judge(self, method: Method, scored_tokens: int, value: float, target_fpr: float | None = None) -> Judgement | None:
        """The verdict on one score; None if the calibration has no bucket for this method and length.

        `machine`: the score is beyond the threshold of the target false-positive rate, and the probability, if known, is at least 0.5.
        `human`: the score is beyond the human threshold of the same rate, and the probability, if known, is below 0.5.
        `uncertain`: everything else, and every score that is outside. Without a target, the calibrated rate nearest to 1% is used.
        Raises `InvalidRequest` for a target that is not calibrated.
        """
        bucket = self.bucket(method, scored_tokens)
        if bucket is None:
            return None
        threshold = bucket.threshold(target_fpr)
        lower = self.methods[method].direction == "lower"
        outside = bucket.is_outside(value, lower)
        p, low, high = bucket.chance.interpolate(value) if bucket.chance and not outside else (None, None, None)
        return Judgement(
            verdict="uncertain" if outside else _verdict(value, threshold, bucket.human, lower, p),
            p_machine=p,
            p_low=low,
            p_high=high,
            threshold=threshold.value,
            target_fpr=threshold.target,
            measured_fpr=threshold.measured,
            fpr_low=threshold.low,
            fpr_high=threshold.high,
            n_human=threshold.n,
            bucket=bucket.name,
            outside=outside,
            found=threshold.found,
            n_machine=bucket.n_machine,
        )

    def check_target(self, target_fpr: float, methods: Iterable[Method]) -> None:
        """Raises `InvalidRequest` for a rate that no bucket of these methods is calibrated for."""
        buckets = (bucket for method in methods for bucket in self.methods[method].buckets)
        calibrated = {threshold.target for bucket in buckets for threshold in bucket.machine if threshold.target is not None}
        if target_fpr not in calibrated:
            rates = ", ".join(f"{rate:g}" for rate in sorted(calibrated)) or "none"
            raise InvalidRequest(f"target_fpr {target_fpr:g} is not calibrated; calibrated rates are: {rates}", param="target_fpr")

    def bucket(self, method: Method, scored_tokens: int) -> Bucket | None:
        if method not in self.methods:
            return None
        return next((bucket for bucket in self.methods[method].buckets if _contains(bucket, scored_tokens)), None)

    def mismatch(self, served: ModelIdentity, method: Method) -> str | None:
        """Why this calibration does not apply to the served models, as a clause; None if it applies."""
        differences = [self._difference(made, served, method) for made in (self.models, *self.equal)]
        if None not in differences:
            return differences[0]
        return None if method in self.methods else f"the calibration does not cover {method}"

    def needs_observer(self, method: Method) -> bool:
        """Whether the observer has to read a text for this method: for `combined` only where its weights have statistics of both models."""
        if method == "combined":
            return self.combined is not None and self.combined.needs_observer
        return method in OBSERVER_METHODS

    def _difference(self, made: ModelIdentity, served: ModelIdentity, method: Method) -> str | None:
        names = ("performer", "revision", "quantize", "dtype") + (("observer", "observer_revision") if self.needs_observer(method) else ())
        for name in names:
            expected, actual = getattr(made, name), getattr(served, name)
            if expected != actual and not (name.endswith("revision") and expected is None):
                return f"the calibration was made with {name.replace('_', ' ')} {expected or 'none'}, but {actual or 'none'} is served"
        return None


def _contains(bucket: Bucket, tokens: int) -> bool:
    return bucket.min_tokens <= tokens and (bucket.max_tokens is None or tokens < bucket.max_tokens)


def _verdict(
    value: float, machine: Threshold, human_thresholds: tuple[Threshold, ...], lower: bool, p: float | None
) -> Literal["machine", "uncertain", "human"]:
    """The human threshold used is the one with the same target as `machine`, or a published one without a target."""
    sign = -1 if lower else 1
    if sign * value > sign * machine.value:
        return "machine" if p is None or p >= 0.5 else "uncertain"
    human = next((threshold for threshold in human_thresholds if threshold.target is None or threshold.target == machine.target), None)
    if human is not None and sign * value < sign * human.value:
        return "human" if p is None or p < 0.5 else "uncertain"
    return "uncertain"


def identity_of(settings: ModelSettings, facts: Facts) -> ModelIdentity:
    return ModelIdentity(
        performer=base_name(settings.path),
        revision=facts.revision,
        observer=base_name(settings.observer_path) if settings.observer_path else None,
        observer_revision=facts.observer_revision,
        quantize=facts.quantize,
        dtype=facts.dtype,
    )


def load(path: Path) -> Calibration:
    """Also with a byte order mark. Raises `SetupError` for a file that is missing or is not a calibration."""
    try:
        return Calibration.model_validate_json(path.read_bytes().removeprefix(BOM_UTF8))
    except OSError as error:
        raise SetupError(f"{path}: the calibration cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"])) or "the file"
        raise SetupError(f"{path} is not a calibration file: {location}: {first['msg']}") from error


def save(calibration: Calibration, path: Path) -> None:
    """Writes atomically: an interrupted call leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(calibration.model_dump_json(indent=1) + "\n")
    temporary.replace(path)


def calibrations_for(path: str) -> Iterator[Calibration]:
    """The calibration in the model's folder `path`, if there is one, then those that are shipped. Raises `SetupError` for a broken file."""
    beside_model = Path(path) / CALIBRATION_FILE
    if beside_model.is_file():
        yield load(beside_model)
    for shipped in (SMOLLM2_PATH, FALCON_PATH):
        yield load(shipped)
