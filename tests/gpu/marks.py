"""How near a measured speed is to what the card could do: arithmetic of shapes. Knows no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Llama. `context` is in tokens."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ff: int
    vocabulary: int
    context: int

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of one decoder layer."""
        attention = self.hidden * self.head * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.ff

    def kv_bytes(self, itemsize: int = 2) -> int:
        """Bytes of the keys and values of one token."""
        return self.layers * 2 * self.kv_heads * self.head * itemsize


EIGHT_B = Shape(hidden=4096, layers=32, heads=32, kv_heads=8, ff=14336, vocabulary=128256, context=8192)
ONE_B = Shape(hidden=2048, layers=16, heads=16, kv_heads=8, ff=5632, vocabulary=32000, context=131072)
TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, ff=128, vocabulary=700, context=512)


def decode_bytes(weights: int, kv_token: int, rows: int, tokens: float) -> float:
    """Bytes that a step has to read at least: all weights once, and the keys and values of `rows` sequences of so many tokens."""
    return weights + rows * tokens * kv_token


def bandwidth_share(bytes_per_step: float, rows: int, tokens_per_s: float, bandwidth: float) -> float:
    """The part of the measured bandwidth (bytes a second) that decoding at this speed uses for what it has to read."""
    return bytes_per_step * (tokens_per_s / rows) / bandwidth


def prefill_flops(shape: Shape, prompts: int, length: int) -> float:
    """Floating-point operations of prompts of `length` tokens: two for each weight and token, and the causal half of the attention. Of
    the vocabulary projection only the last row of each prompt is needed.
    """
    linear = 2 * shape.layers * shape.layer_weights * length
    attention = shape.layers * 2 * 2 * shape.heads * shape.head * length * (length + 1) / 2
    return prompts * (linear + attention + 2 * shape.hidden * shape.vocabulary)


def flops_share(flops: float, seconds: float, flops_per_s: float) -> float:
    return flops / seconds / flops_per_s
