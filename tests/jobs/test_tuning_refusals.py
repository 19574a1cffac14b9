"""Fine-tuning jobs that are refused when they are made, by the name of what is wrong."""

import openai
import pytest
from tuning_jobs import start, upload

from app.models.source import Source

pytestmark = pytest.mark.usefixtures("at_once")


REFUSED = {
    "dpo": ({"method": {"type": "dpo", "dpo": {}}}, "dpo is not supported"),
    "reinforcement": ({"method": {"type": "reinforcement"}}, "reinforcement is not supported"),
    "wandb": ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations are not supported"),
    "suffix": ({"suffix": "my books"}, "'suffix': it must be 1 to 64 letters, digits, '.', '_' or '-', the first one a letter or a digit"),
    "epochs": ({"hyperparameters": {"n_epochs": 0}}, "'hyperparameters.n_epochs': it must be an integer from 1 to 50, or auto"),
    "many epochs": ({"hyperparameters": {"n_epochs": 1000}}, "it must be an integer from 1 to 50, or auto"),
    "words": ({"hyperparameters": {"n_epochs": "three"}}, "it must be an integer from 1 to 50, or auto"),
    "batch": ({"hyperparameters": {"batch_size": 0}}, "'hyperparameters.batch_size': it must be an integer from 1 to 256, or auto"),
    "rate": ({"hyperparameters": {"learning_rate_multiplier": -1}}, "multiplier': it must be a number above 0, at most 100, or auto"),
    "rank": ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"lora_rank": 1000}}}}, "lora_rank"),
    "no such file": ({"validation_file": "file-1"}, "validation_file: there is no file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(hosted, name):
    fields, said = REFUSED[name]
    with pytest.raises(openai.BadRequestError, match=said):
        start(hosted, **fields)


def test_an_adapter_is_no_base(hosted):
    hosted.router.adapters["ft:fake::1"] = "fake"
    try:
        with pytest.raises(openai.BadRequestError, match="'ft:fake::1' is an adapter, and a base is fine-tuned: send 'fake'"):
            hosted.client().fine_tuning.jobs.create(model="ft:fake::1", training_file=upload(hosted))
    finally:
        del hosted.router.adapters["ft:fake::1"]


def test_a_gguf_file_is_not_asked_for_in_nf4(hosted, monkeypatch):
    gguf = Source("a.gguf", gguf=object())
    monkeypatch.setattr("app.tuning.schedule.source_of", lambda path: gguf)
    asked = {"type": "supervised", "supervised": {"hyperparameters": {"quantize": "nf4"}}}
    with pytest.raises(openai.BadRequestError, match="fake is a GGUF file, .* leave out quantize") as refused:
        start(hosted, method=asked)
    assert refused.value.param == "method.supervised.hyperparameters.quantize" and not list(hosted.client().fine_tuning.jobs.list())
    assert start(hosted).status == "validating_files"


def test_an_empty_file_is_refused_at_once(hosted):
    for purpose in ("fine-tune", "batch"):
        with pytest.raises(openai.BadRequestError, match="the file is empty") as refused:
            hosted.client().files.create(file=("t.jsonl", b""), purpose=purpose)
        assert (refused.value.param, refused.value.code) == ("file", "empty_file")
    assert not list(hosted.client().files.list())
