"""How many bytes a model's weights take once they are served, from its skeleton alone.

Follows what `app.models.weights`, `app.models.gguf_weights`, `app.engine.linear` and `app.engine.int4` make of each kind of layer;
`app.engine.sizes` has the arithmetic. A test compares the sum with what the engine declares, for several architectures and
each quantization.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from app.engine import sizes
from app.engine.cudaexperts import is_packed as is_packed_expert
from app.engine.experts import Experts
from app.engine.grouped import FLOAT_4, GROUP_FORMAT, GROUP_SIZE, GroupFormat, is_groupable
from app.engine.int4 import CPU_OUTPUT_MULTIPLE, is_packed_on_cuda
from app.models.blocks import TYPES, group_format
from app.models.checkpoint import Checkpoint
from app.models.gguf_weights import separate_tensors, tensor_names
from app.models.method import is_prequantized, saved_values
from app.models.prequantized import check_names
from app.models.source import Source

FOUR_BITS = ("nf4", "fp4")
Stored = tuple[str, int] | None  # kind and bytes of a weight; None: it stays the dense parameter that it is


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are served. `columns` is the block of the compiled kernel, None where there is none. `is_trained`: nothing stays in
    groups, as layers in groups have no backward pass.
    """

    quantize: str
    dtype: torch.dtype
    device: str  # "cpu" or "cuda"
    columns: int | None = None
    is_trained: bool = False

    @property
    def dense(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer; `is_plain` is False for GPT-2's transposed ones, which only bitsandbytes rounds. `is_expert`: of a mixture, whose
    experts transformers has as one tensor.
    """

    path: str
    outputs: int
    inputs: int
    is_plain: bool
    is_expert: bool = False


def footprint(source: Source, model: PreTrainedModel, form: Form) -> Counter[str]:
    """Bytes by kind of storage, such as "4-bit groups" or "bfloat16". `model` is on the meta device."""
    total: Counter[str] = Counter()
    for _, kind, size in stored_modules(source, model, form):
        total[kind] += size
    return +total


def stored_modules(source: Source, model: PreTrainedModel, form: Form) -> Iterator[tuple[str, str, int]]:
    """A module's path, a kind of storage and its bytes there, for all modules that store something."""
    rules = _Rules(source, model, form)
    counted: set[int] = set()  # parameters, as a tied one has two modules
    for path, module in model.named_modules():
        stored = rules.stored(path, module)
        if stored is not None:
            yield path, *stored
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in counted and (stored is None or name != "weight"):
                counted.add(id(parameter))
                yield path, form.dense, parameter.numel() * form.dtype.itemsize
        yield path, "buffers", sum(buffer.nbytes for buffer in module.buffers(recurse=False))


@dataclass
class _Rules:
    source: Source
    model: PreTrainedModel
    form: Form
    rounded: Checkpoint | None = None  # if others rounded the checkpoint, and its files are at hand
    types: dict[str, str] = field(default_factory=dict)  # of a GGUF file, by the parameter's name
    kept: list[str] = field(default_factory=list)  # modules that bitsandbytes leaves as they are
    is_saved: bool = False  # by bitsandbytes

    def __post_init__(self) -> None:
        self.head: Any = self.model.get_output_embeddings()
        self.embed: Any = self.model.get_input_embeddings()
        self.is_tied = self.head.weight is self.embed.weight
        experts = [module for module in self.model.modules() if isinstance(module, Experts)]
        self.experts = {layer for each in experts for layer in each.modules()}
        self.scheme, self.kept = self.form.quantize, get_keys_to_not_convert(self.model)
        file = self.source.gguf
        if file is not None:
            tensors = separate_tensors(file.tensors)
            self.types = {name: tensors[own].type for name, own in tensor_names(self.model, file).items() if own in tensors}
        elif is_prequantized(self.source.config("model.path")):
            self.rounded = Checkpoint(self.source)
            if self.rounded.names:
                check_names(self.rounded, self.model)
        elif (saved := saved_scheme(self.source)) is not None:
            self.is_saved = True
            self.scheme, kept = saved
            self.kept = self.kept if kept is None else kept

    @property
    def is_tiled(self) -> bool:
        return self.form.columns is not None and self.form.device == "cpu" and self.form.dtype == torch.bfloat16

    @property
    def rounds_itself(self) -> bool:
        """As `app.models.weights.rounds_itself`."""
        return self.form.quantize == "int4" or (self.form.quantize == "int8" and self.form.device == "cpu")

    def stored(self, path: str, module: nn.Module) -> Stored:
        if module is self.embed:
            return self._embedding(f"{path}.weight", module)
        if type(module) is nn.Linear:
            return self._linear(_Linear(path, module.out_features, module.in_features, True, module in self.experts))
        if isinstance(module, Conv1D):
            return self._linear(_Linear(path, module.weight.shape[1], module.weight.shape[0], False))
        return None

    def _linear(self, layer: _Linear) -> Stored:
        if self.source.gguf is not None:
            return self._of_file(layer)
        if self.rounded is not None:
            kept = self._kept(layer)
            return self._plain(layer) if kept is None else self._groups(layer, kept)
        if self.rounds_itself and layer.is_plain and layer.inputs % GROUP_SIZE == 0:
            if self.form.device == "cuda" and self._is_head(layer):
                return None
            return self._groups(layer, GroupFormat(8 if self.form.quantize == "int8" or self._is_head(layer) else 4, GROUP_SIZE))
        if self.scheme in {*FOUR_BITS, "int8"} and not self.rounds_itself and self._is_bitsandbytes(layer):
            return self._of_bitsandbytes(layer)
        return self._plain(layer)

    def _is_head(self, layer: _Linear) -> bool:
        return self.model.get_submodule(layer.path) is self.head

    def _type_of(self, layer: _Linear) -> str | None:
        found = self.types.get(f"{layer.path}.weight")
        if found is None and self._is_head(layer):  # tied: the file has it once
            file = self.source.gguf
            return None if file is None else file.tensors["token_embd.weight"].type
        return found

    def _of_file(self, layer: _Linear) -> Stored:
        kind = self._type_of(layer)
        if kind not in TYPES:
            return self._plain(layer)
        return self._groups(layer, group_format(kind))

    def _kept(self, layer: _Linear) -> GroupFormat | None:
        """The groups of a layer of a checkpoint that others rounded. Where its files are not at hand all are taken to be of 4 bits but
        the vocabulary projection; of MXFP4 the experts.
        """
        assert self.rounded is not None
        if not self.rounded.names:
            if self.rounded.rounding.method == "mxfp4":
                return FLOAT_4 if layer.is_expert else None
            return None if self._is_head(layer) or self.rounded.rounding.method == "fp8" else GROUP_FORMAT
        return self.rounded.format(layer.path, (layer.outputs, layer.inputs)) if self.rounded.is_rounded(layer.path) else None

    def _groups(self, layer: _Linear, groups: GroupFormat) -> Stored:
        """As `linear._prepacked_groups` and `int4.dequantize_others`."""
        if self.is_tiled:
            assert self.form.columns is not None
            packed = sizes.tiled_groups(layer.outputs, layer.inputs, groups.bits, groups.size, self.form.columns)
            return f"{groups.bits}-bit groups", packed
        if self.form.is_trained:
            fits = False
        elif self.form.device == "cuda" and layer.is_expert:
            if is_packed_expert(groups, self.form.dtype):
                return "4-bit groups", sizes.packed_experts(layer.outputs, layer.inputs, groups.table is None)
            fits = False
        elif self.form.device == "cuda":
            fits = is_packed_on_cuda(groups, layer.outputs, self.form.dtype)
        else:
            fits = groups == GROUP_FORMAT and layer.outputs % CPU_OUTPUT_MULTIPLE == 0 and self.form.dtype != torch.float32
        if fits:
            return "4-bit groups", sizes.torch_int4(layer.outputs, layer.inputs, groups.size, self.form.dtype.itemsize)
        return self._dense(layer)

    def _is_bitsandbytes(self, layer: _Linear) -> bool:
        """Whether bitsandbytes rounds it: an expert as `app.models.weights` does, but none of a checkpoint that transformers saved."""
        if layer.is_expert:
            return not self.is_saved and layer.inputs % sizes.BNB_BLOCK == 0 and layer.outputs % sizes.BNB_BLOCK == 0
        return should_convert_module(layer.path, self.kept)

    def _of_bitsandbytes(self, layer: _Linear) -> Stored:
        if self.scheme == "int8":
            return "8 bits, bitsandbytes", sizes.bnb_8bit(layer.outputs, layer.inputs)
        if self.is_tiled and layer.inputs % sizes.BNB_BLOCK == 0:
            assert self.form.columns is not None
            return self.scheme, sizes.tiled_groups(layer.outputs, layer.inputs, 4, GROUP_SIZE, self.form.columns)
        return f"{self.scheme}, bitsandbytes", sizes.bnb_4bit(layer.outputs, layer.inputs)

    def _plain(self, layer: _Linear) -> Stored:
        """As `linear._prepacked_plain`: packed in bfloat16, beside an embedding that it was tied to."""
        if not layer.is_plain or self.form.device != "cpu" or self.form.dtype != torch.bfloat16:
            return None
        if self.form.columns is None:
            return self._dense(layer)
        return self.form.dense, sizes.tiled_bfloat16(layer.outputs, layer.inputs, self.form.columns)

    def _dense(self, layer: _Linear) -> tuple[str, int]:
        return self.form.dense, layer.outputs * layer.inputs * self.form.dtype.itemsize

    def _embedding(self, name: str, module: Any) -> Stored:
        """As `linear._prepacked_embedding`: one that is in groups shares the weights of the projection, or becomes dense."""
        rows, width = module.weight.shape
        dense = (self.form.dense, rows * width * self.form.dtype.itemsize)
        if self.source.gguf is not None:
            kind = self.types.get(name)
            if kind not in TYPES:
                return None
            bits, group, _ = group_format(kind)
        elif self.rounds_itself and self.form.device == "cpu" and self.is_tied and is_groupable(module) and width % GROUP_SIZE == 0:
            bits, group = 8, GROUP_SIZE
        else:
            return None
        if not self.is_tiled or bits != 8:
            return (self.form.dense, 0) if self._shares_dense_weights() else dense
        assert self.form.columns is not None
        return "8-bit groups", 0 if self.is_tied else sizes.tiled_groups(rows, width, bits, group, self.form.columns)

    def _shares_dense_weights(self) -> bool:
        """Whether the projection is tied to the embedding and becomes dense, too, and is not packed."""
        is_packed = self.form.device == "cpu" and self.form.dtype == torch.bfloat16
        if not self.is_tied or is_packed:
            return False
        path = next(path for path, module in self.model.named_modules() if module is self.head)
        stored = self.stored(path, self.head)
        return stored is not None and stored[0] == self.form.dense


def saved_scheme(source: Source) -> tuple[str, list[str] | None] | None:
    """The quantization in which bitsandbytes saved a checkpoint, and the modules that it left; None for other checkpoints."""
    values = {} if source.gguf is not None else saved_values(source.config("model.path"))
    if not values:
        return None
    return str(values["bnb_4bit_quant_type"]) if values.get("load_in_4bit") else "int8", values.get("llm_int8_skip_modules")
