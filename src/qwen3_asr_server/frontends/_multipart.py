"""A multipart form, read bit by bit: its fields are collected, the bytes of its one file are passed on as they come.

Used by `_form` for the doors that take recordings, and where the vendor's SDKs send files for later.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from qwen3_asr_server.errors import InvalidValue, TooLarge

FILE: Final = "file"
MAX_PARTS: Final = 1200
"""OpenAI's clients send each of a thousand keywords as a part."""
MAX_FIELDS_BYTES: Final = 1024 * 1024
"""Of all fields of a form together."""


class Multipart:
    """A form that is read bit by bit.

    Args:
        boundary: what stands between its parts.

    Attributes:
        fields: complete when the form is at its end.
        has_file: the same.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, list[str]] = {}
        self.has_file = False
        self._file: list[bytes] = []
        self._parts = 0
        self._left_bytes = MAX_FIELDS_BYTES
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._part_ends,
                    "on_end": self._ends,
                },
            )
        except FormParserError:
            raise _broken() from None
        if not boundary:
            raise _broken()

    async def file_in(self, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Yield the bytes of the file in the form.

        Raises:
            InvalidValue: this is no form, or breaks off.
            TooLarge: its fields are too large.
        """
        async for chunk in body:
            try:
                self._parser.write(chunk)
            except FormParserError:
                raise _broken() from None
            pieces, self._file = self._file, []
            for piece in pieces:
                yield piece
        if not self._complete:
            raise _broken()

    # What the parser calls

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidValue(f"A form has at most {MAX_PARTS} parts.")
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_ends(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _headers_end(self) -> None:
        options = parse_options_header(self._disposition)[1]
        self._name = _decoded(options.get(b"name", b""))
        if self._name != FILE and options.get(b"filename"):
            raise InvalidValue(f"Send the recording as `{FILE}`.", param=FILE)
        if self._name == FILE:
            if self.has_file:
                raise InvalidValue("There is more than one file: send one at a time.", param=FILE)
            self.has_file = True
        self._value = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE:
            self._file.append(data[start:end])
            return
        self._left_bytes -= end - start
        if self._left_bytes < 0:
            raise TooLarge(f"The fields of a form have at most {MAX_FIELDS_BYTES} bytes together.")
        self._value += data[start:end]

    def _part_ends(self) -> None:
        if self._name != FILE:
            self.fields.setdefault(self._name, []).append(_decoded(bytes(self._value)))

    def _ends(self) -> None:
        self._complete = True


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise InvalidValue("A field of the form is not UTF-8.") from None


def _broken() -> InvalidValue:
    return InvalidValue("The body is no valid multipart/form-data, or breaks off before its end.")
