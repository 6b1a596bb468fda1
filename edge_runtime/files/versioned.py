"""Documents that state the version of their format: the version is read first, then the rest.

So a document of another version is reported as one, and not as a document with wrong fields.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import wall

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.errors import CoveyError


@dataclass(frozen=True)
class VersionedFormat:
    """A format and the errors of documents that do not follow it.

    Attributes:
        what: the document, as the subject of an error's sentence.
        version: the version that this Covey reads.
        decode: msgspec.json.decode or msgspec.msgpack.decode.
        error: the error that is raised.
        hint: what to do about a document that is damaged, or older than this Covey.
        newer_hint: what to do about a document that is newer than this Covey.
        field: the field that holds the version.
        field_name: what an error calls that field.
        also: further versions that this Covey reads, as documents of the same form.
    """

    what: str
    version: int
    decode: Callable[..., Any]
    error: type[CoveyError]
    hint: str
    newer_hint: str
    field: str = "v"
    field_name: str = "version"
    also: tuple[int, ...] = ()

    def read(self, data: bytes, expected: Any) -> Any:  # noqa: ANN401 a type or a union of types
        """Return a document as ``expected``, a type or a union of types.

        Raises:
            CoveyError: the format's error: the document cannot be read, has another version, or is not valid.
        """
        with wall(lambda cause: self.error(f"{self.what} cannot be read: {cause}", self.hint)):
            found = getattr(self.decode(data, type=_version_struct(self.field)), self.field)
        if found not in (self.version, *self.also):
            raise self.error(
                f"{self.what} has {self.field_name} {found}, this Covey reads version {self.version}",
                self.newer_hint if found > self.version else self.hint,
            )
        with wall(lambda cause: self.error(f"{self.what} is not valid: {cause}", self.hint)):
            return self.decode(data, type=expected)


@functools.cache
def _version_struct(field: str) -> type[msgspec.Struct]:
    return msgspec.defstruct("Version", [(field, int)])
