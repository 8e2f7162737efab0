"""What Envoy reads in our replies."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from extproc import replies
from extproc.bodies.findings import MAX_COUNT
from extproc.usage.usage import Usage
from extproc.wire.external_processor_pb2 import HttpBody, ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

USAGE = Usage(21, 10, 31, 5, 2, 4, "gpt-4o", "reported", "complete", "openai", 42)
KINDS = ("request_body", "response_body")


def parsed(reply: bytes) -> ProcessingResponse:
    return ProcessingResponse.FromString(reply)


def metadata(reply: bytes) -> Any:
    return MessageToDict(parsed(reply).dynamic_metadata)


def message(kind: str, **chunk: Any) -> ProcessingRequest:
    return ProcessingRequest(**{kind: HttpBody(**chunk)})


class TestUsage:
    """G10, S4.13"""

    def test_every_field_is_told(self) -> None:
        assert metadata(replies.usage("extproc", USAGE, 30, streaming=True)) == {
            "extproc": {
                "hits_addend": 30,
                "total_tokens": 31,
                "prompt_tokens": 21,
                "completion_tokens": 10,
                "cached_tokens": 5,
                "cache_write_tokens": 2,
                "reasoning_tokens": 4,
                "cost": 42,
                "model": "gpt-4o",
                "source": "reported",
                "usage": "reported",
                "ending": "complete",
                "dialect": "openai",
                "streaming": True,
            }
        }

    @pytest.mark.parametrize("hits", [None, 0, 7])
    @pytest.mark.parametrize("cost", [None, 0, 7])
    def test_what_is_not_known_is_left_out_and_zero_is_not(self, hits: int | None, cost: int | None) -> None:
        told = metadata(replies.usage("extproc", USAGE._replace(cost=cost), hits, streaming=False))["extproc"]
        assert (told.get("hits_addend"), told.get("cost")) == (hits, cost)
        assert (told["total_tokens"], told["streaming"]) == (31, False)

    def test_the_namespace_is_the_operators(self) -> None:
        assert list(metadata(replies.usage("ai.gloo.solo.io", USAGE, 1, streaming=False))) == ["ai.gloo.solo.io"]

    @pytest.mark.parametrize("kind", replies.CONTINUE)
    def test_it_goes_behind_any_reply(self, kind: str) -> None:
        reply = replies.CONTINUE[kind] + replies.usage("extproc", USAGE, 31, streaming=True)
        assert parsed(reply).WhichOneof("response") == kind
        assert metadata(reply)["extproc"]["total_tokens"] == 31

    @given(
        st.lists(st.integers(0, 4 * MAX_COUNT), min_size=6, max_size=6),
        st.text(max_size=200),
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=50),
        st.none() | st.integers(0, 2**80),
    )
    def test_one_exchange_never_shows_another_ones_numbers(
        self, counts: list[int], model: str, namespace: str, cost: int | None
    ) -> None:
        """Whatever the names contain: a place in the constant is a place of a number."""
        for shift in (0, 1):
            shifted = [count + shift for count in counts]
            used = Usage(*shifted, model, "estimated", "client_gone", "anthropic", cost)
            told = metadata(replies.usage(namespace, used, shifted[0], streaming=True))[namespace]
            for name, count in zip(Usage._fields, shifted, strict=False):
                assert told[name] == float(count)
            assert told["hits_addend"] == float(shifted[0])
            assert told.get("cost") == (None if cost is None else float(cost))

    @pytest.mark.parametrize(
        ("model", "shown"),
        [
            ("", ""),
            ("modèle", "modèle"),
            ("two\nlines\x00", "two?lines?"),
            ("\ud800", "?"),
            ("m" * 1000, "m" * 128),
            ("\x00\x01\xff\u00ff", "??\xff\xff"),
        ],
    )
    def test_a_models_name_fits_into_a_log(self, model: str, shown: str) -> None:
        assert (
            metadata(replies.usage("extproc", USAGE._replace(model=model), 1, streaming=True))["extproc"]["model"]
            == shown
        )

    def test_any_number_of_models_takes_a_bounded_memory(self) -> None:
        for number in range(2000):
            replies.usage("extproc", USAGE._replace(model=f"model-{number}"), 1, streaming=True)
        assert replies._template.cache_info().currsize <= 512


class TestHeaders:
    def test_a_mode_alone_changes_no_header(self) -> None:
        reply = parsed(replies.response_headers(replies.READ_RESPONSE))
        assert reply.mode_override == replies.READ_RESPONSE
        assert not reply.response_headers.HasField("response")

    def test_headers_are_set_and_removed(self) -> None:
        reply = parsed(replies.response_headers(add=[("X-Left", "7")], remove=("content-length",)))
        mutation = reply.response_headers.response.header_mutation
        assert [(each.header.key, each.header.raw_value) for each in mutation.set_headers] == [("x-left", b"7")]
        assert list(mutation.remove_headers) == ["content-length"]
        assert not reply.HasField("mode_override")

    def test_headers_are_removed_where_none_is_set(self) -> None:
        reply = parsed(replies.response_headers(replies.READ_RESPONSE, remove=("content-length",)))
        assert list(reply.response_headers.response.header_mutation.remove_headers) == ["content-length"]
        assert reply.mode_override == replies.READ_RESPONSE

    @pytest.mark.parametrize(
        ("mode", "body"),
        [
            (replies.READ_REQUEST, ProcessingMode.BUFFERED_PARTIAL),
            (replies.EDIT_REQUEST, ProcessingMode.BUFFERED),
            (replies.WATCH_REQUEST, ProcessingMode.STREAMED),
            (replies.SKIP_BODIES, ProcessingMode.NONE),
        ],
    )
    def test_a_request_body_is_asked_for_and_the_headers_stay(self, mode: ProcessingMode, body: int) -> None:
        assert (mode.request_body_mode, mode.response_body_mode) == (body, ProcessingMode.NONE)
        assert (mode.request_header_mode, mode.response_header_mode) == (ProcessingMode.DEFAULT,) * 2


REPLACING = {"request_body": replies.request_body, "response_body": replies.response_body}


class TestBody:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_body_is_replaced(self, kind: str) -> None:
        reply = parsed(REPLACING[kind](b"newer"))
        assert reply.WhichOneof("response") == kind
        mutation = getattr(reply, kind).response.body_mutation
        assert (mutation.WhichOneof("mutation"), mutation.body) == ("body", b"newer")

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_left_is_said_so(self, kind: str) -> None:
        """Envoy takes an empty replacement for none at all."""
        mutation = getattr(parsed(REPLACING[kind](b"")), kind).response.body_mutation
        assert (mutation.WhichOneof("mutation"), mutation.clear_body) == ("clear_body", True)

    @pytest.mark.parametrize(("data", "length"), [(b"newer", b"5"), (b"", b"0"), ("é".encode(), b"2")])
    def test_a_request_is_told_its_length_in_bytes(self, data: bytes, length: bytes) -> None:
        """Envoy answers 500 to a request whose length is another than it says."""
        reply = parsed(replies.request_body(data))
        (header,) = reply.request_body.response.header_mutation.set_headers
        assert (header.header.key, header.header.raw_value) == ("content-length", length)

    @pytest.mark.parametrize("data", [b"newer", b""])
    def test_a_request_that_was_held_in_part_gives_up_its_length(self, data: bytes) -> None:
        """Envoy heeds no other length there, and ends a body of another one with a 500."""
        mutation = parsed(replies.request_body(data, keeps_length=False)).request_body.response.header_mutation
        assert (list(mutation.remove_headers), len(mutation.set_headers)) == (["content-length"], 0)

    def test_a_request_body_that_stays(self) -> None:
        assert replies.request_body(None) == replies.CONTINUE["request_body"]

    def test_a_response_has_had_its_headers(self) -> None:
        reply = parsed(replies.response_body(b"new"))
        assert not reply.response_body.response.HasField("header_mutation")

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("data", [b"", b"newer"])
    @pytest.mark.parametrize("end", [{}, {"end_of_stream": True}, {"end_of_stream_without_message": True}])
    def test_in_full_duplex_the_end_is_handed_on_with_the_replacement(
        self, kind: str, data: bytes, end: dict[str, bool]
    ) -> None:
        common = getattr(parsed(replies.streamed_body(kind, message(kind, body=b"old", **end), data)), kind).response
        streamed = common.body_mutation.streamed_response
        assert common.body_mutation.WhichOneof("mutation") == "streamed_response"
        assert (streamed.body, streamed.end_of_stream) == (data, end.get("end_of_stream", False))
        assert streamed.end_of_stream_without_message is end.get("end_of_stream_without_message", False)
        assert not common.HasField("header_mutation")

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_echo_is_the_piece_itself(self, kind: str) -> None:
        piece = message(kind, body=b"piece", end_of_stream=True)
        assert replies.echo(kind, piece) == replies.streamed_body(kind, piece, b"piece")
