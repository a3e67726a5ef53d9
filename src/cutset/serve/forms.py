"""Forms (``multipart/form-data``, RFC 7578) with a file in them.

The body is in memory already, so its file is read from there. Starlette's own reader would write it
to a temporary file, which it leaves open when the form is cut short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from python_multipart.multipart import MultipartParser, parse_options_header

_PIECE_BYTES = 64 << 10


class FormError(ValueError):
    """The body is no form that can be read; says why."""


class _Reader:
    """What the parser calls: keeps the bytes of the one part that has a file's name."""

    def __init__(self) -> None:
        self.file: bytearray | None = None
        self.is_complete = False
        self._in_file = False
        self._field = self._value = b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """By the names that the parser has for them."""
        return {
            "on_header_begin": self._begin_header,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_to_part,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_header(self) -> None:
        self._field = self._value = b""

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() != b"content-disposition":
            return
        _, options = parse_options_header(self._value)
        if b"filename" not in options:
            return
        if self.file is not None:
            raise FormError("it has more than one file")
        self.file = bytearray()
        self._in_file = True

    def _add_to_part(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            assert self.file is not None
            self.file += memoryview(data)[start:end]

    def _end_part(self) -> None:
        self._in_file = False

    def _end(self) -> None:
        self.is_complete = True


async def file_of(content_type: str, body: bytearray) -> bytearray | None:
    """The file in a form.

    Args:
        content_type: the header, which names the boundary between the parts.
        body: of the request, with a limit of its own.

    Returns:
        The bytes of the file; None where no part has a file's name.

    Raises:
        FormError: it is no such form, is cut short, or has several files.
    """
    reader = _Reader()
    try:
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise FormError("its Content-Type names no boundary")
        parser = MultipartParser(
            options[b"boundary"],
            reader.callbacks(),  # type: ignore[arg-type]
        )
        for start in range(0, len(body), _PIECE_BYTES):
            parser.write(bytes(body[start : start + _PIECE_BYTES]))
            await asyncio.sleep(0)  # some bytes take long to understand; others go on meanwhile
    except FormError:
        raise
    except (ValueError, LookupError) as error:  # the parser's own, and those of decoding names
        raise FormError(str(error)) from error
    if not reader.is_complete:
        raise FormError("it ends before its last boundary")
    return reader.file
