"""Bodies of /generate, those of GPT-API: fifteen fields named as in transformers' `generate`, and a list of texts. Beside them `min_p`."""

from typing import Annotated

from pydantic import ConfigDict, Field

from app.schemas.generation import BAD_WORDS, StopWord
from app.schemas.wire import Int, Seed, Wire

MAX_PROMPTS = 64


class GenerateRequest(Wire):
    """Greedy decoding by default. One of three others: `do_sample` samples, `num_beams` above 1 is beam search, and `penalty_alpha` with
    `top_k` is contrastive search (arXiv 2202.06417).
    """

    model: str | None = Field(None, description="name of a served model, see /v1/models; the default model when left out")
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)] = Field(
        description="a text or a list of texts; `gen_text` has one entry for each, in the same order"
    )
    bad_words: Annotated[list[StopWord], Field(max_length=128)] | None = Field(None, description=BAD_WORDS)
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 means greedy decoding; only with do_sample; the model's default when left out"
    )
    top_k: Int | None = Field(
        None,
        ge=0,
        description="with do_sample: keep the k most likely tokens; 0 keeps all; the model's default when left out. "
        "With penalty_alpha: number of candidate tokens, each in a slot of its own",
    )
    top_p: float | None = Field(None, ge=0, le=1, description="nucleus sampling; only with do_sample; the model's default when left out")
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="keep tokens whose probability is at least this share of the most likely token's; only with do_sample; "
        "the model's default when left out",
    )
    min_length: Int = Field(
        0, ge=0, description="nothing ends the answer before it has this many new tokens; end_sequence is looked for in what follows them"
    )
    max_length: Int = Field(64, ge=1, description="limit of the answer in new tokens; the prompt is not counted")
    penalty_alpha: float | None = Field(
        None, ge=0, le=1, description="above 0: contrastive search; weight of the penalty on tokens that resemble the context"
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.01,
        le=10,
        description="divides the logit of each token that the prompt or answer contains (multiplies a negative one); "
        "the model's default when left out",
    )
    early_stop: bool = Field(
        False, description="end a beam search as soon as num_beams answers are complete, even if a better one could follow"
    )
    end_sequence: StopWord | None = Field(None, description="stop string: it ends the answer and is not part of it")
    do_sample: bool = Field(False, description="sample each token; false takes the most likely one, or searches")
    num_beams: Int = Field(1, ge=1, description="above 1: beam search, each beam in a slot of its own")
    return_prompt: bool = Field(False, description="return the prompt before its answer")
    seed: Seed | None = Field(
        None, description="used for every prompt: the same prompt with the same seed gives the same text; -1: a random one"
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": ["Once upon a time", "There was a king who"],
                    "do_sample": True,
                    "temperature": 0.8,
                    "max_length": 40,
                    "seed": 7,
                },
                {"prompt": "Once upon a time", "num_beams": 4, "early_stop": True, "max_length": 40, "end_sequence": "."},
                {"prompt": "Once upon a time", "penalty_alpha": 0.6, "top_k": 4, "max_length": 40, "return_prompt": True},
            ]
        }
    )

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class GenerateResponse(Wire):
    gen_text: list[str] = Field(description="the answer to each prompt, in the same order")

    model_config = ConfigDict(json_schema_extra={"examples": [{"gen_text": [" there was a fox.", " lived in a tower."]}]})
