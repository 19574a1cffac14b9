"""Text to token ids and back, the chat template, and what the model's folder says about end tokens and sampling. Knows no weights.

The API process uses it to refuse requests that cannot be served before they are queued; the worker uses it to detokenize.
"""

from app.tokenizer.chat import ChatTemplate
from app.tokenizer.pieces import Piece
from app.tokenizer.tokenizer import Encoded, Tokenizer, check_unicode

__all__ = ["ChatTemplate", "Encoded", "Piece", "Tokenizer", "check_unicode"]
