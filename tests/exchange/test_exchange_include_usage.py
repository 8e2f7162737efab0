"""S0.D6: models are asked for the usage of streams whose clients did not, and clients see nothing of it."""

from __future__ import annotations

import asyncio
import gzip
import logging
from copy import deepcopy
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.harness import OVER_LIMIT, S0, Gateway, RecordingLimiter, configured, kinds
from support.messages import (
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)

from extproc.usage.include_usage import UsageFrameFilter
from extproc.wire.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from extproc.wire.processing_mode_pb2 import ProcessingMode

STREAM = {"content-type": "text/event-stream"}
QUESTION = b'{"model":"gpt-4o", "messages":[{"role":"user","content":"hi"}], "stream":true}'
EDITED = QUESTION[:-1] + b',"stream_options":{"include_usage":true}}'
LENGTH = {"content-length": str(len(QUESTION))}

HEAD = b'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o","choices":[{"delta":{"content":"To"}}]}\n\n'
FRAME = b'data: {"id":"c","model":"gpt-4o","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
ANSWER = HEAD + b": still there\n\n" + HEAD + FRAME + DONE
SHOWN = HEAD + b": still there\n\n" + HEAD + DONE

NONE = ProcessingMode.NONE
STREAMED = ProcessingMode.STREAMED
DUPLEX = ProcessingMode.FULL_DUPLEX_STREAMED


def asking(**include_usage: Any) -> dict[str, Any]:
    return configured(deepcopy(S0), includeUsage={"enabled": True, **include_usage})


def hits(gateway: Gateway) -> list[int]:
    return [call.query.hits_addend for call in gateway.limiter.of("report")]


def removed(reply: ProcessingResponse) -> list[str]:
    kind = reply.WhichOneof("response")
    assert kind is not None
    return list(getattr(reply, kind).response.header_mutation.remove_headers)


def passed(messages: list[ProcessingRequest], replies: list[ProcessingResponse], kind: str = "response_body") -> bytes:
    """The bytes of a body behind Envoy."""
    found = b""
    for message, reply in zip(messages, replies, strict=True):
        if message.WhichOneof("request") != kind:
            continue
        mutation = getattr(reply, kind).response.body_mutation
        match mutation.WhichOneof("mutation"):
            case "body":
                assert mutation.body, "an empty body is cleared, not set"
                found += mutation.body
            case "clear_body":
                pass
            case "streamed_response":
                found += mutation.streamed_response.body
            case None:
                found += getattr(message, kind).body
    return found


def chunks(body: bytes, cuts: list[int] | None = None, *, ends: bool = True) -> list[ProcessingRequest]:
    places = [0, *sorted(cuts or []), len(body)]
    pieces = [body[start:end] for start, end in pairwise(places)]
    return [response_body(piece, ends=ends and index == len(pieces) - 1) for index, piece in enumerate(pieces)]


async def asked(gateway: Gateway, *messages: ProcessingRequest, modes: tuple[int, int] | None = None) -> list[Any]:
    """A streaming request that was edited, and then `messages`."""
    sequence = [request_headers(LENGTH, modes=modes), request_body(QUESTION), *messages]
    replies = await gateway.exchange(*sequence)
    return [sequence, replies]


# ── the request ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("length", "mode"),
    [
        (100, ProcessingMode.BUFFERED),
        (1000, ProcessingMode.BUFFERED),
        (1001, ProcessingMode.BUFFERED_PARTIAL),
        (10**12, ProcessingMode.BUFFERED_PARTIAL),
        (0, ProcessingMode.BUFFERED_PARTIAL),
        (None, ProcessingMode.BUFFERED_PARTIAL),
        ("-5", ProcessingMode.BUFFERED_PARTIAL),
        ("1e2", ProcessingMode.BUFFERED_PARTIAL),
    ],
)
async def test_envoy_holds_all_of_a_small_body(length: Any, mode: int) -> None:
    """A body that does not fit would wait for ever where all of it is asked for."""
    gateway = Gateway(asking() | {"bodies": {"buffer": 1000}})
    headers = {} if length is None else {"content-length": str(length)}
    (reply,) = await gateway.exchange(request_headers({**headers, "accept-encoding": "gzip"}))
    assert reply.mode_override.request_body_mode == mode
    assert removed(reply) == ["accept-encoding"]


async def test_an_edited_body_gives_up_a_length_that_was_not_known() -> None:
    """G5: of a body that Envoy may hold only in part it takes no other length."""
    _, reply = await Gateway(asking()).exchange(request_headers({}), request_body(QUESTION))
    assert reply.request_body.response.body_mutation.body == EDITED
    assert removed(reply) == ["content-length"]


async def test_the_model_is_asked_and_told_the_length() -> None:
    """Every byte of the client's stays, and the length is that of what is sent."""
    gateway = Gateway(asking())
    _, reply = await gateway.exchange(request_headers(LENGTH), request_body(QUESTION))
    response = reply.request_body.response
    assert response.body_mutation.body == EDITED
    (option,) = response.header_mutation.set_headers
    assert (option.header.key, option.header.raw_value) == ("content-length", str(len(EDITED)).encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":false}',
        b'{"model":"m"}',
        b'{"stream":true,"stream_options":{"include_usage":false}}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":null}',
        b'{"stream":true',
        b"",
        b"\xff\x00",
        b'[{"stream":true}]',
    ],
)
async def test_what_the_client_said_stays(body: bytes) -> None:
    """Never overwritten; and the usage frame that it asked for is its own."""
    gateway = Gateway(asking())
    sequence = [request_headers(), request_body(body), response_headers(STREAM), *chunks(ANSWER)]
    replies = await gateway.exchange(*sequence)
    assert not replies[1].request_body.response.HasField("body_mutation")
    assert removed(replies[2]) == []
    assert passed(sequence, replies) == ANSWER
    assert hits(gateway) == [11]


@pytest.mark.parametrize(
    ("request_message", "options"),
    [
        (request_headers(path="/v1/embeddings"), {}),
        (request_headers(path="/v1/messages"), {}),
        (request_headers(path="/v1/chat/completions"), {"exceptHosts": ["TRLP.example.com"]}),
        (request_headers(path="/v1/chat/completions"), {"exceptHosts": ["*.example.com"]}),
        (request_headers(path="/v1/chat/completions"), {"paths": ["/other"]}),
        (request_headers({"content-encoding": "gzip"}), {}),
    ],
)
async def test_requests_that_may_not_be_asked_are_not_even_read(
    request_message: ProcessingRequest, options: dict[str, Any]
) -> None:
    gateway = Gateway(asking(**options))
    (reply,) = await gateway.exchange(request_message)
    assert reply.mode_override.request_body_mode == NONE
    assert removed(reply) == []


@pytest.mark.parametrize("pattern", ["gpt-4o", "GPT-*", "*"])
async def test_models_that_refuse_the_option_are_not_asked(pattern: str) -> None:
    gateway = Gateway(asking(exceptModels=[pattern]))
    replies = await gateway.exchange(request_headers(LENGTH), request_body(QUESTION))
    assert not replies[1].request_body.response.HasField("body_mutation")
    others = Gateway(asking(exceptModels=["gpt-4o-mini", "claude*"]))
    replies = await others.exchange(request_headers(LENGTH), request_body(QUESTION))
    assert replies[1].request_body.response.body_mutation.body == EDITED


async def test_a_query_string_changes_nothing() -> None:
    gateway = Gateway(asking())
    replies = await gateway.exchange(request_headers(LENGTH, path="/v1/chat/completions?x=1"), request_body(QUESTION))
    assert replies[1].request_body.response.body_mutation.body == EDITED


@pytest.mark.parametrize("ends", [True, False])
async def test_a_part_of_a_body_passes_as_it_is(ends: bool) -> None:
    """The rest is on its way: nothing may be put between."""
    gateway = Gateway(asking())
    part = QUESTION[:-10]
    replies = await gateway.exchange(
        request_headers(), request_body(part, ends=ends), response_headers(STREAM), *chunks(ANSWER)
    )
    assert not replies[1].request_body.response.HasField("body_mutation")
    assert removed(replies[2]) == []
    assert hits(gateway) == [11]


async def test_a_whole_body_before_trailers_is_edited() -> None:
    gateway = Gateway(asking())
    replies = await gateway.exchange(request_headers(), request_body(QUESTION, ends=False), request_trailers())
    assert replies[1].request_body.response.body_mutation.body == EDITED
    assert kinds(replies) == ["request_headers", "request_body", "request_trailers"]


async def test_a_request_that_is_denied_is_not_edited() -> None:
    """Nor is one whose body decides: the denial stands in the place of the edit."""
    config = asking()
    data = config["actionSets"][0]["actions"][0]["conditionalData"][0]["data"]
    data.append({"expression": {"key": "model", "value": "requestBodyJSON('/model')"}})
    gateway = Gateway(config, RecordingLimiter({"check": lambda: OVER_LIMIT}))
    replies = await gateway.exchange(request_headers(LENGTH), request_body(QUESTION))
    assert kinds(replies) == ["request_headers", "immediate_response"]
    allowed = Gateway(config)
    replies = await allowed.exchange(request_headers(LENGTH), request_body(QUESTION))
    assert replies[1].request_body.response.body_mutation.body == EDITED
    assert allowed.limiter.of("check")[0].entries["model"] == "gpt-4o"


async def test_a_gateway_that_streams_bodies_is_too_late_to_ask() -> None:
    """It has sent the old length already; nothing is edited and nothing taken out."""
    gateway = Gateway(asking())
    sequence, replies = await asked(gateway, response_headers(STREAM), *chunks(ANSWER), modes=(STREAMED, STREAMED))
    assert not replies[0].HasField("mode_override")
    assert removed(replies[0]) == []
    assert passed(sequence, replies, "request_body") == QUESTION
    assert passed(sequence, replies) == ANSWER
    assert hits(gateway) == [11]


async def test_in_full_duplex_the_edit_is_sent_back() -> None:
    gateway = Gateway(asking())
    sequence, replies = await asked(gateway, response_headers(STREAM), *chunks(ANSWER), modes=(DUPLEX, DUPLEX))
    sent = replies[1].request_body.response.body_mutation.streamed_response
    assert (sent.body, sent.end_of_stream) == (EDITED, True)
    assert passed(sequence, replies) == SHOWN
    assert replies[-1].response_body.response.body_mutation.streamed_response.end_of_stream
    assert hits(gateway) == [11]


async def test_in_full_duplex_a_body_that_came_whole_is_edited_before_its_end_is_told() -> None:
    """As Envoy does it: all of the body, then a message that only says that it was all."""
    gateway = Gateway(asking())
    sequence = [request_headers(modes=(DUPLEX, DUPLEX)), request_body(QUESTION, ends=False), request_body(b"")]
    replies = await gateway.exchange(*sequence)
    assert orjson.loads(passed(sequence, replies, "request_body"))["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("cut", [1, 40, len(QUESTION) - 1])
async def test_in_full_duplex_pieces_go_back_as_they_came(cut: int) -> None:
    """The first was sent back before the last was there."""
    gateway = Gateway(asking())
    sequence = [
        request_headers(modes=(DUPLEX, DUPLEX)),
        request_body(QUESTION[:cut], ends=False),
        request_body(QUESTION[cut:]),
        response_headers(STREAM),
        *chunks(ANSWER),
    ]
    replies = await gateway.exchange(*sequence)
    assert passed(sequence, replies, "request_body") == QUESTION
    assert passed(sequence, replies) == ANSWER


# ── the answer ────────────────────────────────────────────────────────────────────────────────────────


async def test_the_frame_is_counted_and_not_shown() -> None:
    gateway = Gateway(asking())
    sequence, replies = await asked(gateway, response_headers({**STREAM, "content-length": "9999"}), *chunks(ANSWER))
    assert removed(replies[2]) == ["content-length"]
    assert replies[2].mode_override.response_body_mode == STREAMED
    assert passed(sequence, replies) == SHOWN
    assert hits(gateway) == [11]
    fields = dict(replies[-1].dynamic_metadata["extproc"].items())
    assert (fields["source"], fields["model"]) == ("reported", "gpt-4o")


@pytest.mark.parametrize("duplex", [False, True])
async def test_a_frame_is_taken_out_wherever_the_stream_is_split(duplex: bool) -> None:
    modes = (DUPLEX, DUPLEX) if duplex else None
    gateway = Gateway(asking())
    for cut in range(1, len(ANSWER)):
        sequence, replies = await asked(gateway, response_headers(STREAM), *chunks(ANSWER, [cut]), modes=modes)
        assert passed(sequence, replies) == SHOWN
    assert hits(gateway) == [11] * (len(ANSWER) - 1)


frames = st.sampled_from(
    [
        (HEAD, True),
        (FRAME, False),
        (FRAME.replace(b"\n", b"\r\n"), False),
        (b": ping\n\n", True),
        (b'data: {"choices":[]}\n\n', True),
        (b'data: {"choices":[{"delta":{}}],"usage":{"total_tokens":3}}\n\n', True),
        (b'data: {"choices":[],"usage":null}\n\n', True),
        (b'data: {"error":{"message":"choices: [] usage _tokens"}}\n\n', True),
        (DONE, True),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 2000), max_size=12), st.booleans(), st.booleans())
def test_clients_get_every_byte_but_those_of_usage_frames(
    stream: list[tuple[bytes, bool]], places: list[int], duplex: bool, trailers: bool
) -> None:
    """For any stream and any split; the end may be told with the last bytes or by trailers."""
    body = b"".join(frame for frame, _ in stream)
    shown = b"".join(frame for frame, stays in stream if stays)
    cuts = [place for place in places if place < len(body)]

    async def drive() -> None:
        gateway = Gateway(asking())
        ending = [response_trailers()] if trailers else []
        messages = [response_headers(STREAM), *chunks(body, cuts, ends=not trailers), *ending]
        sequence, replies = await asked(gateway, *messages, modes=(DUPLEX, DUPLEX) if duplex else None)
        assert passed(sequence, replies) == shown
        assert kinds(replies) == [message.WhichOneof("request") for message in sequence]
        assert len(hits(gateway)) <= 1

    asyncio.run(drive())


async def test_the_operator_may_leave_the_frame_in() -> None:
    gateway = Gateway(asking(strip=False))
    sequence, replies = await asked(gateway, response_headers({**STREAM, "content-length": "9"}), *chunks(ANSWER))
    assert removed(replies[2]) == []
    assert passed(sequence, replies) == ANSWER
    assert hits(gateway) == [11]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({**STREAM, "content-encoding": "gzip"}, gzip.compress(ANSWER)),
        ({"content-type": "application/json"}, b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}'),
        ({"content-type": "text/html"}, ANSWER),
    ],
)
async def test_other_answers_pass_as_they_are(headers: dict[str, str], body: bytes) -> None:
    """What is compressed cannot be filtered, and what is no event stream has no frame; all of it is counted."""
    gateway = Gateway(asking())
    sequence, replies = await asked(gateway, response_headers({**headers, "content-length": "9999"}), *chunks(body))
    assert removed(replies[2]) == []
    assert passed(sequence, replies) == body
    assert hits(gateway) == [11]


async def test_errors_pass_as_they_are() -> None:
    gateway = Gateway(asking())
    sequence, replies = await asked(gateway, response_headers(STREAM, status=500), *chunks(ANSWER))
    assert removed(replies[2]) == []
    assert passed(sequence, replies) == ANSWER
    assert hits(gateway) == []


@pytest.mark.parametrize("cut", [len(HEAD) * 2, len(ANSWER) - len(DONE) - 2, len(ANSWER) - 3])
async def test_a_client_that_hangs_up_is_charged_for_what_was_held_too(cut: int) -> None:
    """The reader sees what the model said, not what the client did."""
    gateway = Gateway(asking())
    await asked(gateway, response_headers(STREAM), *chunks(ANSWER[:cut], ends=False))
    (charged,) = hits(gateway)
    told_all = cut > len(HEAD) * 2
    assert (charged == 11) == told_all


class _Broken(UsageFrameFilter):
    def feed(self, chunk: bytes, last: bool = False) -> bytes | None:
        raise RuntimeError("a defect")


@pytest.mark.parametrize("duplex", [False, True])
async def test_a_defect_in_the_filter_costs_the_client_no_byte_and_us_no_count(
    duplex: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("extproc.exchange.answer.UsageFrameFilter", _Broken)
    gateway = Gateway(asking())
    messages = [response_headers(STREAM), *chunks(ANSWER, [10, 30, 300])]
    sequence, replies = await asked(gateway, *messages, modes=(DUPLEX, DUPLEX) if duplex else None)
    assert passed(sequence, replies) == ANSWER
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    assert gateway.metrics.errors >= 1
    assert hits(gateway) == [11]
