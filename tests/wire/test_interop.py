"""Every message means the same to us and to envoy-data-plane, an encoder that shares no code with ours."""

from __future__ import annotations

from collections.abc import Container, Iterator
from enum import IntEnum
from functools import cache
from typing import Any

import pytest
from envoy_data_plane.message_pool import default_message_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.wire import descriptor_pb2, external_auth_pb2, external_processor_pb2, kuadrant_pb2, rls_pb2

# Setting some of their fields warns that Envoy has deprecated them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Tree = dict[str, Any]
"""A message as plain values: the fields that are set, by name. Messages and maps are dicts, enums numbers."""

LACKING = {
    "envoy.service.ext_proc.v3.ProcessingResponse.typed_dynamic_metadata": "newer than envoy-data-plane 2.2.0",
}
DEPTH = 6
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),  # NaN is not equal to itself
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}
# envoy-data-plane holds durations in timedelta: no nanoseconds, and its negative fractions come out wrong.
DURATIONS = st.builds(
    lambda seconds, micros: {k: v for k, v in {"seconds": seconds, "nanos": micros * 1000}.items() if v},
    st.integers(0, 2**31),
    st.integers(0, 999_999),
)
# It holds points in time in datetime, which begins in the year 1.
TIMESTAMPS = st.builds(
    lambda seconds, micros: {k: v for k, v in {"seconds": seconds, "nanos": micros * 1000}.items() if v},
    st.integers(0, 2**37),
    st.integers(0, 999_999),
)
SPECIAL = {"google.protobuf.Duration": DURATIONS, "google.protobuf.Timestamp": TIMESTAMPS}


def map_value(field: FieldDescriptor) -> FieldDescriptor | None:
    """The field of the values when `field` is a map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry and entry.GetOptions().map_entry else None


# Making trees


def one(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type:
        return trees(field.message_type, depth - 1)
    if field.enum_type:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return SCALARS[field.type]


def several(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Values of a field that is set; the default of a field without presence cannot be told from its absence."""
    if value := map_value(field):
        return st.dictionaries(TEXT, one(value, depth), min_size=1, max_size=2)
    if field.is_repeated:
        return st.lists(one(field, depth), min_size=1, max_size=2)
    return one(field, depth) if field.has_presence else one(field, depth).filter(bool)


@cache
def trees(message: Descriptor, depth: int = DEPTH, arm: str | None = None) -> st.SearchStrategy[Tree]:
    """Any tree of `message`, `depth` messages deep; with `arm`, that arm of its oneof is set."""
    if message.full_name in SPECIAL:
        return SPECIAL[message.full_name]
    fields = [field for field in message.fields if depth or not field.message_type]
    free = {field.name: several(field, depth) for field in fields if not field.containing_oneof}
    arms = [field for field in fields if field.containing_oneof and arm in (None, field.name)]
    choices = [st.fixed_dictionaries({field.name: several(field, depth)}) for field in arms]
    chosen = st.one_of(*choices) if arm else st.one_of(st.just({}), *choices)
    return st.builds(lambda some, choice: some | choice, st.fixed_dictionaries({}, optional=free), chosen)


# Ours


def our_class(message: Descriptor) -> type[Message]:
    return GetMessageClass(message)


def build_ours(message: Descriptor, tree: Tree) -> Message:
    built = our_class(message)()
    for name, value in tree.items():
        field = message.fields_by_name[name]
        target = getattr(built, name)
        inner = field.message_type
        if (of := map_value(field)) and of.message_type:
            for key, item in value.items():
                target[key].CopyFrom(build_ours(of.message_type, item))
        elif of:
            target.update(value)
        elif field.is_repeated:
            target.extend(build_ours(inner, item) if inner else item for item in value)
        elif inner:
            target.SetInParent()
            target.MergeFrom(build_ours(inner, value))
        else:
            setattr(built, name, value)
    return built


def plain_ours(message: Message, without: Container[str] = ()) -> Tree:
    """The tree of `message`; fields whose full name is in `without` are left out."""

    def plain(field: FieldDescriptor, value: Any) -> Any:
        return plain_ours(value, without) if field.message_type else value

    tree: Tree = {}
    for field, value in message.ListFields():
        if field.full_name in without:
            continue
        if of := map_value(field):
            tree[field.name] = {key: plain(of, item) for key, item in value.items()}
        else:
            tree[field.name] = [plain(field, item) for item in value] if field.is_repeated else plain(field, value)
    return tree


# Theirs


def their_class(message: Any) -> Any:
    return default_message_pool.url_to_type[f"type.googleapis.com/{message.full_name}"]


def build_theirs(message: Descriptor, tree: Tree) -> Any:
    theirs = their_class(message)
    metas, classes = theirs._betterproto.meta_by_field_name, theirs._betterproto.cls_by_field

    def built(field: FieldDescriptor, value: Any) -> Any:
        if not field.message_type:
            of_a_map = field.name not in metas
            return value if of_a_map or metas[field.name].proto_type != "enum" else classes[field.name](value)
        inner = build_theirs(field.message_type, value)
        return inner.to_wrapped() if hasattr(inner, "to_wrapped") else inner

    arguments: Tree = {}
    for name, value in tree.items():
        field = message.fields_by_name[name]
        if field.full_name in LACKING:
            continue
        if of := map_value(field):
            arguments[name] = {key: built(of, item) for key, item in value.items()}
        else:
            arguments[name] = [built(field, item) for item in value] if field.is_repeated else built(field, value)
    return theirs(**arguments)


def plain_theirs(message: Descriptor, theirs: Any) -> Tree:
    metas = theirs._betterproto.meta_by_field_name

    def plain(field: FieldDescriptor, value: Any) -> Any:
        if not field.message_type:
            return int(value) if isinstance(value, IntEnum) else value
        unwrap = metas[field.name].unwrap if field.name in metas else None
        return plain_theirs(field.message_type, unwrap().from_wrapped(value) if unwrap else value)

    tree: Tree = {}
    for field in message.fields:
        value = None if field.full_name in LACKING else getattr(theirs, field.name)
        if value is None or (not field.has_presence and not value):
            continue
        if of := map_value(field):
            tree[field.name] = {key: plain(of, item) for key, item in value.items()}
        else:
            tree[field.name] = [plain(field, item) for item in value] if field.is_repeated else plain(field, value)
    return tree


# What is compared

ROOTS = [
    *external_auth_pb2.DESCRIPTOR.message_types_by_name.values(),
    *external_processor_pb2.DESCRIPTOR.message_types_by_name.values(),
    *rls_pb2.DESCRIPTOR.message_types_by_name.values(),
]


def arms(message: Descriptor) -> Iterator[str | None]:
    yield None
    for oneof in message.oneofs:
        yield from (field.name for field in oneof.fields)


CASES = [
    pytest.param(message, arm, id=".".join(filter(None, (message.name, arm))))
    for message in ROOTS
    for arm in arms(message)
]
every_message = pytest.mark.parametrize(("message", "arm"), CASES)
few = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@every_message
@few
@given(data=st.data())
def test_what_we_encode_is_read_by_envoy_data_plane_and_comes_back(
    message: Descriptor, arm: str | None, data: st.DataObject
) -> None:
    tree = data.draw(trees(message, arm=arm))
    ours = build_ours(message, tree)
    assert plain_ours(ours) == tree
    theirs = their_class(message).parse(ours.SerializeToString())
    assert plain_theirs(message, theirs) == plain_ours(ours, without=LACKING)
    # What envoy-data-plane lacks it passes on unread, so the way back has it all.
    assert our_class(message).FromString(bytes(theirs)) == ours


@every_message
@few
@given(data=st.data())
def test_what_envoy_data_plane_encodes_is_read_by_us_and_comes_back(
    message: Descriptor, arm: str | None, data: st.DataObject
) -> None:
    tree = data.draw(trees(message, arm=arm))
    theirs = build_theirs(message, tree)
    ours = our_class(message).FromString(bytes(theirs))
    assert plain_ours(ours) == plain_ours(build_ours(message, tree), without=LACKING)
    assert plain_theirs(message, their_class(message).parse(ours.SerializeToString())) == plain_ours(ours)


def test_roots_cover_the_messages_of_every_rpc() -> None:
    for file in (external_auth_pb2, external_processor_pb2, kuadrant_pb2, rls_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert {method.input_type, method.output_type} <= set(ROOTS)


def test_fields_we_leave_out_are_passed_over() -> None:
    """Envoy may send more than we declare; the rest of the message is read all the same."""
    from_envoy = their_class(rls_pb2.RateLimitRequest.DESCRIPTOR)(
        domain="llm",
        descriptors=[
            their_class(descriptor_pb2.RateLimitDescriptor.DESCRIPTOR)(hits_addend=7, is_negative_hits=True),
        ],
    )
    ours = rls_pb2.RateLimitRequest.FromString(bytes(from_envoy))
    assert plain_ours(ours) == {"domain": "llm", "descriptors": [{"hits_addend": {"value": 7}}]}


@pytest.mark.parametrize(
    ("file", "paths"),
    [
        (external_auth_pb2, {"/envoy.service.auth.v3.Authorization/Check": (False, False)}),
        (external_processor_pb2, {"/envoy.service.ext_proc.v3.ExternalProcessor/Process": (True, True)}),
        (
            kuadrant_pb2,
            {
                "/kuadrant.service.ratelimit.v1.RateLimitService/CheckRateLimit": (False, False),
                "/kuadrant.service.ratelimit.v1.RateLimitService/Report": (False, False),
            },
        ),
        (rls_pb2, {"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit": (False, False)}),
    ],
    ids=["ext_authz", "ext_proc", "kuadrant", "rls"],
)
def test_rpc_paths_and_streaming(file: Any, paths: dict[str, tuple[bool, bool]]) -> None:
    assert {
        f"/{service.full_name}/{method.name}": (method.client_streaming, method.server_streaming)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    } == paths


@pytest.mark.parametrize("method", ["CheckRateLimit", "Report"])
def test_kuadrant_speaks_envoys_rate_limit_messages(method: str) -> None:
    rpc = kuadrant_pb2.DESCRIPTOR.services_by_name["RateLimitService"].methods_by_name[method]
    assert rpc.input_type.full_name == "envoy.service.ratelimit.v3.RateLimitRequest"
    assert rpc.output_type.full_name == "envoy.service.ratelimit.v3.RateLimitResponse"
