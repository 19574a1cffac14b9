"""Serves a causal language model as two functions: a flat row of tokens to hidden states, and hidden states to logits.

Linear layers see one row `[1, T]` without padding, whatever sequences the tokens belong to; only `SlotAttention` knows the sequences.
`conversion.create_flat_model` makes one, and checks that it computes the same logits this way as by the model's own forward.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.cudadecoder import create_cuda_decoder
from app.engine.facts import Weights
from app.engine.fused import FusedDecoder, compile_experts
from app.engine.kernel import kernel
from app.engine.keyvalues import attends, keeps_states
from app.engine.layout import Layout, Span, layout_of
from app.engine.linear import TiledLinear
from app.engine.lora import Adapters, Changes, Shapes
from app.engine.pages import PAGE_TOKENS, PageCopy
from app.engine.proof import Proof, check_ids
from app.engine.rows import has_supported_heads
from app.engine.transfer import to_device
from app.errors import SetupError

log = logging.getLogger(__name__)


class FlatModel:
    """A model with its KV cache: `pages` pages for the slots of generation, and `scoring_pages` for a text that is scored in several
    chunks, which lie in a cache of their own.
    """

    def __init__(self, model: PreTrainedModel, attention: SlotAttention, decoder: FusedDecoder | None) -> None:
        self.model = model
        self.weights = Weights()
        self.proof: Proof | None = None
        self.attention = attention
        self.device: torch.device = model.device  # where ids go
        self.layer_devices = layer_devices(model)
        self._head: nn.Module = model.get_output_embeddings()
        self._head_device = _device_of(self._head) or self.device
        self._logits = logits_of(model.config)
        self.devices = tuple(dict.fromkeys([self.device, *self.layer_devices.values(), self._head_device]))
        self.slots = 0
        self.context = 0  # tokens of a sequence at most
        self.text_window = 0  # tokens of a text that are read in one piece
        self.pages = 0
        self.page_tokens = PAGE_TOKENS
        self.scoring_pages = range(0)
        self.hidden_size = 0
        self.convert_s = 0.0  # seconds that rounding and packing its layers took
        self.adapters = Adapters(Shapes({}, ""), model.dtype, model.device, decoder is None)
        self._decoder = decoder

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding; a tokenizer may know more."""
        return int(self.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]

    @property
    def context_pages(self) -> int:
        return -(-self.context // self.page_tokens)

    @property
    def device_name(self) -> str:
        """Such as "cuda:1", or "cuda:0,1" if it is divided."""
        return ",".join([str(self.device), *(str(device.index) for device in self.devices[1:])])

    @property
    def is_on_kernel(self) -> bool:
        """Whether its layers run on the compiled kernel, whose results do not depend on the number of threads."""
        return any(isinstance(module, TiledLinear) for module in self.model.modules())

    @property
    def attends_only(self) -> bool:
        """Whether all of its layers keep keys and values."""
        return all(map(attends, self.attention.shapes.values()))

    @property
    def has_states(self) -> bool:
        """Whether some of its layers keep a state, which cannot be set back by some tokens."""
        return keeps_states(self.attention.shapes.values())

    @cached_property
    def decodes_on_kernel(self) -> bool:
        """Whether its layers and the attention of its decoding rows do."""
        compiled = kernel() if self.is_on_kernel else None
        shapes = set(filter(attends, self.attention.shapes.values()))
        return compiled is not None and all(has_supported_heads(key, value, compiled.columns) for _, key, value in shapes)

    @torch.inference_mode()
    def forward(
        self, ids: list[int], positions: list[int], layout: Layout, adapted: Mapping[str, Sequence[int]] | None = None
    ) -> torch.Tensor:
        """Compute hidden states `[T, hidden]` of the step's rows, where the head is. `adapted` says which rows have which adapter."""
        if not adapted:
            return self._forward(ids, positions, layout, False)
        with self.adapters.running(adapted):
            return self._forward(ids, positions, layout, True)

    def _forward(self, ids: list[int], positions: list[int], layout: Layout, adapted: bool) -> torch.Tensor:
        rows = to_device(torch.tensor([ids, positions], dtype=torch.long), self.device)
        self.attention.layout = layout
        try:
            return self.compute(rows, adapted).to(self._head_device)
        finally:
            self.attention.layout = None

    def compute(self, rows: torch.Tensor, adapted: bool = False) -> torch.Tensor:
        """The states `[T, hidden]` of ids and positions `rows` `[2, T]`. What each row attends to has been said to the attention."""
        if self._decoder is not None:
            return self._decoder(rows[0], rows[1], adapted)
        mask = _unused_mask(self.device) if self.attention.is_flash else None
        return self.model.base_model(input_ids=rows[:1], position_ids=rows[1:], attention_mask=mask, use_cache=False).last_hidden_state[0]

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits `[rows, vocab]` of hidden states `[rows, hidden]`."""
        return self._logits(self._head(hidden))

    def wait(self) -> None:
        """Return when the device has computed all that it was given: a GPU works on while calls return."""
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def forward_uncached(self, ids: list[int], adapted: Mapping[str, Sequence[int]] | None = None) -> torch.Tensor:
        """Compute hidden states `[T, hidden]` of a single sequence, without the KV cache."""
        return self.forward(ids, list(range(len(ids))), layout_of([], [Span(0, len(ids), 0, None)], self.page_tokens, self.device), adapted)

    def add_adapter(self, name: str, changes: Changes) -> None:
        """Raises `SetupError` if the model does not compute with it; then it is not there."""
        ids = check_ids(self.model)
        self.adapters.add(name, changes)
        try:
            self.adapters.prove(name, lambda adapted: self.forward_uncached(ids, adapted), len(ids))
        except SetupError:
            self.adapters.remove(name)
            raise

    def bind_cuda(self) -> None:
        """Let kernels of ours do what lies between products, where the cache is laid out for torch's flash kernel."""
        if self._decoder is not None and self.attention.is_flash:
            is_known = len(self.devices) == 1 and self.attends_only
            self._decoder.on_cuda = create_cuda_decoder(self._decoder) if is_known else None

    def bind_layers(self) -> None:
        """Look up the layers again, after some of them have changed."""
        compile_experts(self.model)
        if self._decoder is not None:
            self._decoder.bind_layers()

    def bind_adapters(self, shapes: Shapes) -> None:
        """Know the layers that adapters may change. `shapes` are those before layers were joined."""
        model = self.model
        self.adapters = Adapters(shapes, model.dtype, self.device, self._decoder is None)
        if self._decoder is not None:
            self._decoder.bind_adapters(self.adapters, "" if model.base_model is model else f"{model.base_model_prefix}.")
            return
        for name in shapes.layers:
            if name != shapes.head:
                self.adapters.adapt(model.get_submodule(name), [name])

    @torch.inference_mode()
    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy tokens from page to page, one copy after the other."""
        self.attention.slots.copy(copies)


def logits_of(config: PretrainedConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a model does with its vocabulary projection: Cohere and Granite scale it, Gemma caps it softly."""
    scale, divisor, cap = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))

    def changed(logits: torch.Tensor) -> torch.Tensor:
        logits = logits if scale is None else logits * scale
        logits = logits if divisor is None else logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return changed


def layer_devices(model: PreTrainedModel) -> dict[int, torch.device]:
    """Where the attention of each layer is computed, by the number that it has for the cache."""
    numbered = ((getattr(module, "layer_idx", None), module) for module in model.modules())
    return {number: _device_of(module) or model.device for number, module in numbered if number is not None}


def _device_of(module: nn.Module) -> torch.device | None:
    """None for one whose weights are packed."""
    return next((parameter.device for parameter in module.parameters()), None)


def _unused_mask(device: torch.device) -> torch.Tensor:
    """A mask that nobody reads. Without one, transformers looks at the positions for where sequences begin, and waits for the device."""
    return torch.zeros(1, 1, 1, 1, device=device)
