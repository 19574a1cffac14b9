"""A calibration: where, for these models and no others, the border between human and machine lies, and how sure that is.

A JSON file and the verdict it gives; plain arithmetic, imported by the API process. How one is fitted: `app.scoring.fitting`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from app.engine.request import Facts
from app.errors import InvalidRequest, SetupError
from app.schemas import Method
from app.scoring.thresholds import Border, Bucket, Part, Scale
from app.settings import ModelSettings

FALCON = Path(__file__).with_name("falcon.json")  # published with Binoculars, arXiv 2401.12070
PAIRED: frozenset[Method] = frozenset({"binoculars", "likelihood_ratio"})  # methods that ask the observer
BESIDE = "calibration.json"  # in the folder of the model it belongs to


class Models(Part):
    """Which weights, served how. Names are the last parts of the paths. No revision: whichever has the name (published borders only)."""

    performer: str
    revision: str | None
    observer: str | None
    observer_revision: str | None
    quantize: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """`p_machine` and its interval are for a world with as many machine texts as human ones; None where only borders were published, or
    `outside`: the score lies further on the human's side than that of any text of the calibration, so the text is not like them.
    `measured_fpr`, its interval and `n_human` are those of the border `threshold` on the human texts of the calibration.
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


class Calibration(Part):
    """`collapse`: the texts had runs of white space made one blank (`app.scoring.normalize`), so a text to judge must have too: line breaks
    say more of where a text was copied from than of who wrote it. `cut_words` were cut from the beginning of each, such as an opening
    that both sides shared; a text to judge is not cut. `refused`:
    sentences on what the texts did not support.
    """

    format: Literal["litmus-calibration"] = "litmus-calibration"
    version: Literal[1] = 1
    made: str
    source: str
    models: Models
    collapse: bool
    cut_words: int = Field(0, ge=0)
    methods: dict[Method, Scale]
    refused: tuple[str, ...] = ()

    def judge(self, method: Method, scored_tokens: int, value: float, target_fpr: float | None = None) -> Judgement | None:
        """None where no texts of this length were calibrated by this method.

        `machine`: beyond the border that the target rate of human texts crosses, and the probability, where known, is at least a half.
        `human`: beyond the border, on the other side, that the same rate of machine texts crosses, and the probability is below a half.
        Else, or where it lies outside, `uncertain`. Without a target: the calibrated one nearest to 1%. Raises `InvalidRequest` for a
        target that is not calibrated.
        """
        bucket = self.bucket(method, scored_tokens)
        if bucket is None:
            return None
        border = bucket.border(target_fpr)
        lower = self.methods[method].direction == "lower"
        outside = bucket.outside(value, lower)
        p, low, high = bucket.chance.at(value) if bucket.chance and not outside else (None, None, None)
        return Judgement(
            verdict="uncertain" if outside else _verdict(value, border, bucket.human, lower, p),
            p_machine=p,
            p_low=low,
            p_high=high,
            threshold=border.value,
            target_fpr=border.target,
            measured_fpr=border.measured,
            fpr_low=border.low,
            fpr_high=border.high,
            n_human=border.n,
            bucket=bucket.name,
            outside=outside,
        )

    def check_target(self, target_fpr: float, methods: Iterable[Method]) -> None:
        """Raises `InvalidRequest` for one that is calibrated for no length."""
        scales = (self.methods[method] for method in methods)
        known = {border.target for scale in scales for one in scale.buckets for border in one.machine if border.target is not None}
        if target_fpr not in known:
            rates = ", ".join(f"{one:g}" for one in sorted(known)) or "none"
            raise InvalidRequest(f"target_fpr {target_fpr:g} is not calibrated; known are: {rates}", param="target_fpr")

    def bucket(self, method: Method, scored_tokens: int) -> Bucket | None:
        scale = self.methods.get(method)
        return next((one for one in scale.buckets if _holds(one, scored_tokens)), None) if scale else None

    def mismatch(self, served: Models, method: Method) -> str | None:
        """A sentence on why this calibration does not belong to what is served; None where it does."""
        names = ("performer", "revision", "quantize", "dtype") + (("observer", "observer_revision") if method in PAIRED else ())
        for name in names:
            wanted, found = getattr(self.models, name), getattr(served, name)
            if wanted != found and not (name.endswith("revision") and wanted is None):
                return f"the calibration belongs to {name.replace('_', ' ')} {wanted or 'none'}, and {found or 'none'} is served"
        return None if method in self.methods else f"the calibration has no {method}"


def _holds(bucket: Bucket, tokens: int) -> bool:
    return bucket.min_tokens <= tokens and (bucket.max_tokens is None or tokens < bucket.max_tokens)


def _verdict(
    value: float, border: Border, others: tuple[Border, ...], lower: bool, p: float | None
) -> Literal["machine", "uncertain", "human"]:
    """`others`: the borders on the human side, of which the one with the same target holds."""
    sign = -1 if lower else 1
    if sign * value > sign * border.value:
        return "machine" if p is None or p >= 0.5 else "uncertain"
    other = next((one for one in others if one.target is None or one.target == border.target), None)
    if other is not None and sign * value < sign * other.value:
        return "human" if p is None or p < 0.5 else "uncertain"
    return "uncertain"


def models_of(settings: ModelSettings, facts: Facts) -> Models:
    return Models(
        performer=last_part(settings.path),
        revision=facts.revision,
        observer=last_part(settings.observer_path) if settings.observer_path else None,
        observer_revision=facts.observer_revision,
        quantize=facts.quantize,
        dtype=facts.dtype,
    )


def last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def load(path: Path) -> Calibration:
    """Raises `SetupError` for a file that is not there or is no calibration."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: the calibration cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise SetupError(f"{path} is no calibration: {where}: {first['msg']}") from error


def save(calibration: Calibration, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(calibration.model_dump_json(indent=1) + "\n")
    part.replace(path)


def ready(path: str) -> Iterator[Calibration]:
    """What lies beside the model at `path`, then what comes with Litmus. Raises `SetupError` for a broken file."""
    beside = Path(path) / BESIDE
    if beside.is_file():
        yield load(beside)
    yield load(FALCON)
