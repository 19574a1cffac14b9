"""The lines of an input file, from chunks of bytes: what a line is, and where it ends. Empty lines do not count."""

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawLine:
    number: int  # in the file, from 1, empty lines included
    text: bytes | None  # None: longer than a line may be
    end: int  # the byte behind it


async def raw_lines(chunks: AsyncIterator[bytes], max_bytes: float = math.inf) -> AsyncIterator[RawLine]:
    """Holds one line at a time, and never more than `max_bytes` of it and a chunk."""
    number, position, held, too_long = 0, 0, bytearray(), False

    def line() -> RawLine:
        text = bytes(held).removeprefix(BOM if number == 1 else b"").strip()
        return RawLine(number, None if too_long or len(text) > max_bytes else text, position)

    async for chunk in chunks:
        pieces = chunk.split(b"\n")
        for index, piece in enumerate(pieces):
            ends = index < len(pieces) - 1
            position += len(piece) + ends
            held += piece
            if ends:
                number += 1
                if (found := line()).text != b"":
                    yield found
                held, too_long = bytearray(), False
            elif len(held) > max_bytes:
                held, too_long = bytearray(), True
    number += 1
    if (found := line()).text != b"":
        yield found
