"""The check of a model's own forward against every other way to compute it."""

import pytest
import torch
from tinymodels import tiny

from app.engine.proof import Check
from app.errors import UnsupportedModel


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny("Llama")
    with torch.no_grad():
        model.lm_head.weight[7, 0] = float("nan")
    check = Check(model)
    with pytest.raises(UnsupportedModel, match="gives logits that are not finite: its weights are damaged"):
        check.compare("in pages", check.expected)
