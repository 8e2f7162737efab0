"""What Envoy tells about one request, read once from the first message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from extproc.wire.base_pb2 import HeaderValue
from extproc.wire.external_processor_pb2 import ProcessingRequest

AUTH_NAMESPACE = "envoy.filters.http.ext_authz"
"""Dynamic metadata of an ext_authz server (Authorino) in front of us."""
FILTER = "envoy.filters.http.ext_proc"
"""The key under which Envoy sends `request_attributes`."""

JsonValue = None | bool | float | str | list["JsonValue"] | dict[str, "JsonValue"]


class RequestFacts:
    """Headers, attributes and dynamic metadata of one request.

    Header names are lower case (Envoy's doing), pseudo headers included. Values that are not UTF-8 have the
    offending bytes replaced. A header that occurs several times is joined with `,`.
    """

    __slots__ = ("_message", "auth", "headers")

    def __init__(self, message: ProcessingRequest) -> None:
        sent = message.request_headers.headers.headers
        headers = {header.key: header.raw_value for header in sent}
        if len(headers) != len(sent) or not headers.get(":method"):
            headers = _joined(sent)
        self.headers = headers
        self.auth: Mapping[str, Any] | None = None
        """What an authenticator of ours found out about the caller."""
        self._message = message

    def header(self, name: str) -> str | None:
        """The value of a header, None when it is absent."""
        value = self.headers.get(name)
        return None if value is None else value.decode("utf-8", "replace")

    def attribute(self, name: str) -> JsonValue:
        """An attribute that Envoy was configured to send, None when it was not sent."""
        return attribute(self._message, name)

    @property
    def host(self) -> str:
        """The authority as the client sent it, "" when there is none."""
        return self.header(":authority") or self.header("host") or ""

    @property
    def metadata(self) -> Mapping[str, Struct]:
        """Dynamic metadata of the filters before us, as far as Envoy forwards it."""
        return self._message.metadata_context.filter_metadata

    def identity(self) -> Mapping[str, Any] | None:
        """What is known of the caller: from our authenticator, else from an ext_authz filter in front of us."""
        if self.auth is None and AUTH_NAMESPACE in self.metadata:
            found = self.namespace(AUTH_NAMESPACE)
            self.auth = found if isinstance(found, dict) else None
        return self.auth

    def change_headers(self, change: Iterable[tuple[str, str]], remove: Iterable[str]) -> None:
        """See the request as the model will: without the headers `remove`, with those of `change`."""
        for name in remove:
            self.headers.pop(name, None)
        for name, value in change:
            self.headers[name.lower()] = value.encode("utf-8", "replace")

    def namespace(self, name: str) -> JsonValue:
        """A namespace of dynamic metadata, None when it was not forwarded."""
        metadata = self.metadata
        if name not in metadata:
            return None
        return {key: plain(value) for key, value in metadata[name].fields.items()}


def attribute(message: ProcessingRequest, name: str) -> JsonValue:
    """An attribute that came with `message`, None when it did not."""
    attributes = message.attributes
    if FILTER not in attributes or name not in attributes[FILTER].fields:
        return None
    return plain(attributes[FILTER].fields[name])


def _joined(sent: Iterable[HeaderValue]) -> dict[str, bytes]:
    """Headers that occur several times, or from a gateway that sends `value` in place of `raw_value`."""
    headers: dict[str, bytes] = {}
    for header in sent:
        key, value = header.key, header.raw_value or header.value.encode()
        headers[key] = headers[key] + b"," + value if key in headers else value
    return headers


def plain(value: Value) -> JsonValue:
    """A protobuf Value as Python data; whole numbers become integers, as CEL compares and prints them."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: plain(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [plain(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if kind == "string_value":
        return value.string_value
    return value.bool_value if kind == "bool_value" else None
