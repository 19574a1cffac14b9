"""Bodies of `/v1/fine_tuning/jobs`: OpenAI's, with the settings of LoRA as further hyperparameters."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from app.schemas.batches import Metadata
from app.schemas.wire import Int, Wire

JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
ENDED: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
MAX_EPOCHS, MAX_BATCH, MAX_RANK, MAX_SEED = 50, 256, 256, 2**31 - 1
MAX_MULTIPLIER, MAX_SUFFIX = 100, 64
Auto = Literal["auto"]


def _right(words: str) -> WrapValidator:
    """Whatever is wrong with a value, the message says what would be right."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"it must be {words}") from None

    return WrapValidator(check)


Epochs = Annotated[Auto | Annotated[Int, Field(ge=1, le=MAX_EPOCHS)], _right(f"an integer from 1 to {MAX_EPOCHS}, or auto")]
BatchSize = Annotated[Auto | Annotated[Int, Field(ge=1, le=MAX_BATCH)], _right(f"an integer from 1 to {MAX_BATCH}, or auto")]
Multiplier = Annotated[
    Auto | Annotated[float, Field(gt=0, le=MAX_MULTIPLIER)], _right(f"a number above 0, at most {MAX_MULTIPLIER}, or auto")
]
Suffix = Annotated[
    Annotated[str, Field(min_length=1, max_length=MAX_SUFFIX, pattern=r"^[A-Za-z0-9][\w.-]*$")],
    _right(f"1 to {MAX_SUFFIX} letters, digits, '.', '_' or '-', the first one a letter or a digit"),
]


class Hyperparameters(Wire):
    n_epochs: Epochs = Field("auto", description="how often each example is learnt from")
    batch_size: BatchSize = Field("auto", description="examples of a step")
    learning_rate_multiplier: Multiplier = Field("auto", description="times the rate of 0.0002")
    lora_rank: Int = Field(16, ge=1, le=MAX_RANK, description="rank of the adapter's matrices")
    lora_alpha: Int | None = Field(
        None, ge=1, le=1024, description="what the adapter adds is scaled by alpha / rank; twice the rank if left out"
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="share of a layer's inputs that the adapter does not see in a step")
    quantize: Literal["auto", "none", "nf4"] = Field(
        "auto", description="of the base while it is trained; nf4 is QLoRA; auto: nf4 where the base is served so"
    )


class Supervised(Wire):
    hyperparameters: Hyperparameters | None = None


class Method(Wire):
    type: Literal["supervised", "dpo", "reinforcement"] = Field(description="supervised; the others are refused")
    supervised: Supervised | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_supervised(self) -> Self:
        if self.type != "supervised" or self.dpo is not None or self.reinforcement is not None:
            asked = self.type if self.type != "supervised" else "dpo" if self.dpo is not None else "reinforcement"
            raise ValueError(f"{asked} is not supported: fine-tuning is supervised here; set type to supervised")
        return self


class JobRequest(Wire):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "storyteller", "training_file": "file-abc123", "suffix": "alice", "seed": 7}]}
    )

    model: str = Field(max_length=128, description="a model that is served here: the base")
    training_file: str = Field(max_length=64, description="a file with the purpose fine-tune: one example a line")
    validation_file: str | None = Field(None, max_length=64, description="examples that are not learnt from, whose loss is told meanwhile")
    hyperparameters: Hyperparameters | None = Field(None, description="OpenAI's older place for method.supervised.hyperparameters")
    method: Method | None = None
    suffix: Suffix | None = Field(None, description="part of the result's name")
    seed: Int | None = Field(None, ge=0, le=MAX_SEED, description="of order, dropout and the adapter's first weights; random if left out")
    metadata: Metadata | None = None
    integrations: Annotated[None | Annotated[list[Any], Field(max_length=0)], _right("left out: integrations are not supported")] = Field(
        None, description="none are supported"
    )

    @property
    def asked(self) -> Hyperparameters:
        of_method = None if self.method is None or self.method.supervised is None else self.method.supervised.hyperparameters
        return of_method or self.hyperparameters or Hyperparameters()

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        of_method = None if self.method is None or self.method.supervised is None else self.method.supervised.hyperparameters
        if of_method is not None and self.hyperparameters is not None and of_method != self.hyperparameters:
            raise ValueError("hyperparameters and method.supervised.hyperparameters differ; send one of them")
        return self


class JobError(Wire):
    code: str
    message: str
    param: str | None = None


class Job(Wire):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None = Field(description="while it runs: when it will be done at the speed so far")
    model: str
    fine_tuned_model: str | None = Field(description="the name of the result, once it has succeeded")
    organization_id: str = ""
    status: JobStatus
    error: JobError | None
    hyperparameters: Hyperparameters = Field(description="as they are used; auto until the files have been checked")
    method: Method
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field(description="a CSV file with the losses of every step")
    trained_tokens: int | None
    seed: int
    metadata: dict[str, str] | None
    integrations: list[Any] = []


class JobList(Wire):
    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool


class JobEvent(Wire):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None = Field(description="of metrics: step, total_steps, train_loss and, now and then, valid_loss")


class JobEventList(Wire):
    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


class Checkpoint(Wire):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float]


class CheckpointList(Wire):
    object: Literal["list"] = "list"
    data: list[Checkpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelDeleted(Wire):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
