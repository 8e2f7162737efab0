"""Guarded streams: what a client gets of them, and how they end."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import anthropic
import openai
import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from extproc.bodies.decoders import DecodingError, decoder_for
from extproc.guards.decoded_answers import StreamDecoder
from extproc.guards.final_events import MESSAGE, Framing, final_events
from extproc.guards.growing_texts import Escapes
from extproc.guards.patterns import Patterns
from extproc.guards.stream_guard import MAX_DOUBTFUL, TOO_LONG, StreamGuard

OPENAI_END = (
    b'data: {"error":{"message":"The answer was withheld by a content guard.","type":"content_filter","param":null,'
    b'"code":"content_filter"}}\n\ndata: [DONE]\n\n'
)


class Deny:
    """Patterns as a guard has them, which count their searches."""

    def __init__(self, *patterns: str) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self.searches = 0

    def denied_by(self, text: str) -> str | None:
        text.encode()
        self.searches += 1
        found = (index for index, pattern in enumerate(self._patterns) if pattern.search(text))
        return next((f"deny[{index}]" for index in found), None)


def sse(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


def chat(content: str | None, index: int = 0, key: str = "content") -> bytes:
    return sse({"object": "chat.completion.chunk", "choices": [{"index": index, "delta": {key: content}}]})


def tool(arguments: str, index: int = 0) -> bytes:
    call = {"index": index, "function": {"arguments": arguments}}
    return sse({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})


def block(text: str, index: int = 0) -> bytes:
    data = {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}
    return sse(data, "content_block_delta")


def response(delta: str, number: int) -> bytes:
    data = {"type": "response.output_text.delta", "sequence_number": number, "output_index": 0, "delta": delta}
    return sse(data, "response.output_text.delta")


def gemini(text: str) -> bytes:
    return sse({"candidates": [{"content": {"parts": [{"text": text}]}, "index": 0}]}).replace(b"\n", b"\r\n")


def cohere(text: str) -> bytes:
    return sse({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}})


def ollama(text: str) -> bytes:
    line = {"model": "m", "created_at": "2026-01-02T03:04:05Z", "message": {"role": "assistant", "content": text}}
    return orjson.dumps(line) + b"\n"


def guarded(
    chunks: Sequence[bytes], deny: Deny, look_behind: int = 64, framing: Framing = "sse", **options: Any
) -> tuple[list[bytes], str | None]:
    """What is sent for each chunk, the last of which is empty; and the rule that was broken."""
    guard = StreamGuard(deny, look_behind, framing=framing, **options)
    sent = [guard.feed(chunk) for chunk in chunks]
    sent.append(guard.feed(b"", last=True))
    return sent, guard.denied


def split_at(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


Serve = Callable[[Mapping[str, Sequence[bytes]]], Awaitable[str]]


@pytest.fixture
async def server() -> AsyncIterator[Serve]:
    """Serves streams by their path on loopback; gives its URL."""
    runners: list[web.AppRunner] = []

    async def serve(streams: Mapping[str, Sequence[bytes]]) -> str:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=b"".join(streams[request.path]), content_type="text/event-stream")

        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        runners.append(web.AppRunner(app))
        await runners[0].setup()
        site = web.TCPSite(runners[0], "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runners[0].addresses[0][1]}"

    yield serve
    for runner in runners:
        await runner.cleanup()


def test_a_stream_without_a_match_passes_event_by_event_untouched() -> None:
    """S3.14."""
    events = [
        chat(""),
        chat("all "),
        chat(None),
        chat("is well"),
        sse({"choices": [], "usage": {}}),
        b"data: [DONE]\n\n",
    ]
    deny = Deny("账号")
    guard = StreamGuard(deny, 64)
    for event in events:
        assert guard.feed(event) is event
        assert guard.held == 0
    assert guard.feed(b"", last=True) == b""
    assert deny.searches == 2, "one for each piece of text"


STREAMS: dict[str, tuple[Callable[[str], bytes], Framing, bytes]] = {
    "openai": (chat, "sse", OPENAI_END),
    "arguments": (tool, "sse", OPENAI_END),
    "anthropic": (
        block,
        "sse",
        b'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error","message":"'
        + MESSAGE.encode()
        + b'"}}\n\n',
    ),
    "gemini": (
        gemini,
        "sse",
        b'data: {"error":{"code":403,"message":"' + MESSAGE.encode() + b'","status":"PERMISSION_DENIED"}}\n\n',
    ),
    "cohere": (
        cohere,
        "sse",
        b'event: message-end\ndata: {"type":"message-end","delta":{"finish_reason":"ERROR","error":"'
        + MESSAGE.encode()
        + b'"}}\n\n',
    ),
    "ollama": (ollama, "ndjson", b'{"error":"' + MESSAGE.encode() + b'"}\n'),
    "unknown": (lambda text: sse({"reply": text}), "sse", OPENAI_END),
    "no json": (lambda text: b"data:" + text.encode() + b"\n\n", "sse", OPENAI_END),
}


@pytest.mark.parametrize("dialect", STREAMS)
def test_the_event_that_completes_a_match_gives_way_to_an_error_of_the_dialect(dialect: str) -> None:
    """G6: a stream is cut by an event, never by a reset."""
    event, framing, end = STREAMS[dialect]
    chunks = [event("my 账"), event("号"), event(" is 1234"), b"data: [DONE]\n\n"]
    sent, denied = guarded(chunks, Deny("nothing", "账号"), framing=framing)
    assert denied == "deny[1]"
    assert sent == [chunks[0], end, b"", b"", b""]


def test_the_last_event_of_a_responses_stream_takes_the_number_of_the_one_that_it_replaces() -> None:
    sent, _ = guarded([response("my ", 7), response("账号", 8)], Deny("账号"))
    assert sent[0] == response("my ", 7)
    end = orjson.loads(sent[1].split(b"data: ")[1])
    assert sent[1].startswith(b"event: error\n")
    assert (end["type"], end["code"], end["message"], end["sequence_number"]) == ("error", "content_filter", MESSAGE, 8)
    assert end["error"]["message"] == MESSAGE


async def test_the_sdks_raise_what_they_raise_for_errors_of_their_own(server: Serve) -> None:
    chats, _ = guarded([chat("my "), chat("账号")], Deny("账号"))
    responses, _ = guarded([response("my ", 7), response("账号", 8)], Deny("账号"))
    messages, _ = guarded([block("my "), block("账号")], Deny("账号"))
    url = await server({"/v1/chat/completions": chats, "/v1/responses": responses, "/v1/messages": messages})
    asked: Any = {"model": "m", "stream": True}
    said: Any = [{"role": "user", "content": "?"}]
    heard: list[Any] = []
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as client:
        with pytest.raises(openai.APIError, match=MESSAGE):
            heard += [chunk async for chunk in await client.chat.completions.create(messages=said, **asked)]
        with pytest.raises(openai.APIError, match=MESSAGE):
            heard += [event async for event in await client.responses.create(input="?", **asked)]
    async with anthropic.AsyncAnthropic(api_key="k", base_url=url) as other:
        with pytest.raises(anthropic.APIError, match=MESSAGE):
            heard += [event async for event in await other.messages.create(messages=said, max_tokens=9, **asked)]


@pytest.mark.parametrize(
    "chunks",
    [
        [chat("账", 0), chat("号", 1)],
        [chat("账"), chat("号", key="reasoning_content")],
        [tool("账", 0), tool("号", 1)],
        [block("账", 0), block("号", 1)],
        [ollama("账").replace(b"\n", b"\n\n"), ollama("x"), ollama("号")],
    ],
)
def test_pieces_of_different_texts_make_no_match(chunks: list[bytes]) -> None:
    framing: Framing = "ndjson" if chunks[0].startswith(b"{") else "sse"
    assert guarded(chunks, Deny("账号"), framing=framing) == ([*chunks, b""], None)


def test_pieces_of_one_text_match_though_others_come_between() -> None:
    chunks = [chat("账", 0), chat("x", 1), tool("y"), chat("号", 0)]
    assert guarded(chunks, Deny("账号"))[1] == "deny[0]"


def test_arguments_are_read_as_their_reader_will() -> None:
    pieces = ['{"a":"\\u8d', "26\\", "u53", 'f7"}']
    sent, denied = guarded([tool(piece) for piece in pieces], Deny("账号"))
    assert denied == "deny[0]"
    assert sent[:3] == [tool(piece) for piece in pieces[:3]]
    assert guarded([chat(piece) for piece in ["C:\\u8d", "26\\u53f7"]], Deny("账号"))[1] is None, "is no JSON"


@given(st.text(alphabet='\\u8d26/nt"xé', max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_escapes_resolve_alike_however_they_are_cut(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole, piecewise = Escapes(), Escapes()
    assert "".join(piecewise.resolve(text[start:end]) for start, end in pairwise(edges)) == whole.resolve(text)


def test_halves_of_one_character_match_together() -> None:
    halves = [b'data: {"text":"\\ud83d"}\n\n', b'data: {"text":"\\ude00"}\n\n']
    assert guarded(halves, Deny("\U0001f600")) == ([halves[0], OPENAI_END, b""], "deny[0]")


@pytest.mark.parametrize(("look_behind", "denied"), [(2, "deny[0]"), (0, None)])
def test_a_match_begins_within_the_look_behind(look_behind: int, denied: str | None) -> None:
    assert guarded([chat("xxxa"), chat("b"), chat("c")], Deny("abc"), look_behind)[1] == denied
    assert guarded([chat("xxxabc")], Deny("abc"), look_behind)[1] == "deny[0]"


class TestEdges:
    """A piece is no text: where it begins and ends says nothing."""

    def test_a_word_that_goes_on_is_not_the_word(self) -> None:
        chunks = [chat("an ass"), chat("essment"), chat(" of it")]
        sent, denied = guarded(chunks, Deny(r"\bass\b"))
        assert denied is None
        assert sent == [b"", chunks[0] + chunks[1], chunks[2], b""]

    def test_a_word_that_ends_is(self) -> None:
        chunks = [chat("an ass"), chat(""), chat(" it"), chat("is")]
        assert guarded(chunks, Deny(r"\bass\b")) == ([b"", b"", OPENAI_END, b"", b""], "deny[0]")

    def test_so_is_one_that_ends_with_its_stream(self) -> None:
        chunks = [chat("an "), chat("ass"), sse({"choices": []}), b"data: [DONE]\n\n"]
        assert guarded(chunks, Deny(r"\bass\b")) == ([chunks[0], b"", b"", b"", OPENAI_END], "deny[0]")

    def test_what_waits_is_bounded(self) -> None:
        guard = StreamGuard(Deny(r"ass$"), 64)
        assert guard.feed(chat("ass")) == b""
        other = chat("x" * 1000, 1)
        sent = b""
        while not sent:
            assert guard.held <= MAX_DOUBTFUL
            sent = guard.feed(other)
        assert (sent, guard.denied, guard.held) == (OPENAI_END, "deny[0]", 0)

    def test_the_edge_of_the_look_behind_is_no_edge_of_a_word(self) -> None:
        chunks = [chat(f"barfoo{index}") for index in range(10)]
        for look_behind in range(12):
            assert guarded(chunks, Deny(r"\bfoo", "^foo"), look_behind)[1] is None

    def test_the_beginning_of_a_text_is_one(self) -> None:
        assert guarded([chat("fo"), chat("o bar")], Deny("^foo"))[1] == "deny[0]"
        assert guarded([chat("x" * 9), chat("foo")], Deny("^foo"), 4)[1] is None

    def test_another_rule_is_found_behind_one_that_an_edge_broke(self) -> None:
        assert guarded([chat("xx"), chat("foo bar")], Deny("^x", "bar"), 0)[1] == "deny[0]"
        assert guarded([chat("xxy"), chat("foo bar")], Deny("^y", "bar"), 0)[1] == "deny[1]"


@pytest.mark.parametrize(
    "event",
    [
        "data:{0}\n\n",
        "data: {0}\r\n\r\n",
        "data: {0}\r\r",
        "\ufeffdata: {0}\n\n",
        "id: 1\nevent: message\ndata: {0}\nretry: 3\n\n",
        ": a comment\ndata: {0}\n\n",
        "{0}\n\n",
        " data: {0}\n\n",
        "data: {0}",
        'data: {{"text":\ndata: "{0}"}}\n\n',
        'data: {{"text":"{0}"}}\ndata: {{"text":"and"}}\n\n',
        'data: {{"text":"fine"}}\ndata: [{0}\n\n',
        '{{"text":\n"{0}"}}\n\n',
        'data: {{"text":"{0}","text":"fine"}}\n\n',
        'data: {{"text":"{0}\n\n',
    ],
)
def test_no_form_of_an_event_hides_a_text(event: str) -> None:
    data = event.format("我的账号").encode()
    sent, denied = guarded([data], Deny("账号"))
    assert denied == "deny[0]"
    assert b"".join(sent).endswith(OPENAI_END)
    assert "账号".encode() not in b"".join(sent)
    assert guarded([data], Deny("nothing"))[1] is None


def test_comments_pass_at_once() -> None:
    guard = StreamGuard(Deny("账号"), 64)
    assert guard.feed(b": ping\n") == b": ping\n"
    assert guard.feed(b"\n: pi") == b"\n"
    assert guard.feed(b"ng\r") == b": ping\r"
    assert guard.feed(b"\n\r\n") == b"\n\r\n"
    assert guard.feed(b"data: a\r\n\r") == b"data: a\r\n\r"
    assert guard.feed(b"\ndata: ") == b"\n"
    assert guard.held == len(b"data: ")


def test_labels_are_not_searched() -> None:
    deny = Deny("nothing")
    event = {"id": "chatcmpl-13800138000", "object": "chat.completion.chunk", "model": "m", "choices": []}
    guarded([sse(event)] * 9, deny)
    assert deny.searches == 0


@pytest.mark.parametrize("framing", ["sse", "ndjson"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_that_is_longer_than_may_be_held_ends_the_stream(framing: Framing, size: int) -> None:
    first, long = (ollama("a"), ollama("x" * 500)) if framing == "ndjson" else (chat("a"), chat("x" * 500))
    data = first + long
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    guard = StreamGuard(Deny("nothing"), 64, framing=framing, max_event=400)
    sent = b""
    for chunk in chunks:
        sent += guard.feed(chunk)
        assert guard.held <= 400 + size + 2
    assert guard.denied == TOO_LONG
    assert sent == first + final_events(framing, "ollama" if framing == "ndjson" else "openai", b"")


def test_a_stream_that_says_little_ends_in_the_words_of_its_profile() -> None:
    sent, _ = guarded([b"data: abc\n\n"], Deny("abc"), profile="anthropic")
    assert sent[0].startswith(b"event: error\n")


def test_a_text_that_was_let_go_starts_anew_and_hides_nothing_else() -> None:
    chunks = [chat("x", index) for index in range(300)]
    assert guarded([*chunks, chat("账号", 0)], Deny("账号"))[1] == "deny[0]"
    assert guarded([chat("账", 299), *chunks[:100], chat("号", 299)], Deny("账号"))[1] == "deny[0]"


def test_the_patterns_of_a_guard_serve_here() -> None:
    patterns = Patterns(deny=[r"\bass\b", "账号"])
    for events, denied in ((["an ass", "essment"], None), (["an ass", " it is"], "deny[0]"), (["账", "号"], "deny[1]")):
        guard = StreamGuard(patterns, 64)
        for event in events:
            guard.feed(chat(event))
        guard.feed(b"", last=True)
        assert guard.denied == denied


class TestCompressed:
    """Compressed streams are guarded too, and passed on as identity."""

    def decoder(self, limit: int = 1 << 20) -> StreamDecoder:
        decoder = decoder_for("gzip", limit)
        assert decoder is not None
        return StreamDecoder(decoder)

    def test_each_event_comes_out_with_the_bytes_that_complete_it(self) -> None:
        decoder, coder = self.decoder(), zlib.compressobj(wbits=31)
        for text in ("my ", "账号"):
            assert decoder.decode(coder.compress(chat(text)) + coder.flush(zlib.Z_SYNC_FLUSH)) == chat(text)
        assert decoder.decode(coder.flush(), last=True) == b""

    @pytest.mark.parametrize("last", [False, True])
    def test_what_does_not_decode_is_told(self, last: bool) -> None:
        decoder = self.decoder()
        assert decoder.decode(gzip.compress(chat("a"))) == chat("a")
        with pytest.raises(DecodingError):
            decoder.decode(b"no gzip", last)

    @pytest.mark.parametrize("limit", [1 << 20, 1 << 40])
    def test_so_is_a_bomb(self, limit: int) -> None:
        with pytest.raises(DecodingError):
            self.decoder(limit).decode(gzip.compress(chat("a" * 1000) * 20_000))

    def test_an_event_without_its_end_comes_too(self) -> None:
        assert self.decoder().decode(gzip.compress(chat("a")[:-1]), last=True) == chat("a")[:-1]


units = st.sampled_from(
    [
        *(chat(text, index) for text in ("账", "号", "ass", "es", " ", "\\u8d") for index in (0, 1)),
        *(b"\n", b"\r", b"\r\n", b": ping\n", b"\xef\xbb\xbf", b"data: ass\n\n", b"data: {\r\rdata: [DONE]\n\n", b"x"),
        *(response("ass", 3), block("账"), tool('{"a":"\\u8d26'), ollama("ass"), b"data", b"\xff"),
        b'data: {"a":"b","a":1}\n\n',
    ]
)
streams = st.lists(units | st.binary(max_size=8), max_size=12).map(b"".join)
framings: st.SearchStrategy[Framing] = st.sampled_from(["sse", "ndjson"])
cuts = st.lists(st.integers(min_value=0, max_value=4000), max_size=8)


@given(streams, cuts, framings)
def test_what_matches_nothing_passes_whole_and_nothing_stays(data: bytes, cuts: list[int], framing: Framing) -> None:
    sent, denied = guarded(split_at(data, cuts), Deny("nothing at all"), framing=framing)
    assert (b"".join(sent), denied) == (data, None)


@given(streams, cuts, framings, st.integers(min_value=0, max_value=5), st.sampled_from([40, 1 << 20]))
def test_chunks_decide_nothing(data: bytes, cuts: list[int], framing: Framing, look_behind: int, longest: int) -> None:
    def of(chunks: list[bytes]) -> tuple[bytes, str | None]:
        deny = Deny("账号", r"\bass\b", "^ es", "x$")
        sent, denied = guarded(chunks, deny, look_behind, framing, max_event=longest)
        return b"".join(sent), denied

    whole, denied = of([data])
    assert of(split_at(data, cuts)) == of([data[at : at + 1] for at in range(len(data))]) == (whole, denied)
    if denied is None:
        assert whole == data


@given(st.lists(st.sampled_from(["sec", "ret", "s", "e", "cret", " ", "x"]), max_size=12), st.integers(3, 40))
def test_a_text_is_cut_exactly_if_it_matches(pieces: list[str], look_behind: int) -> None:
    """However a text is cut into events, what is found in it is what is found in the whole."""
    text = "".join(pieces)
    for pattern in ("secret", r"\bsecret\b", r"^secret", "secret$"):
        _, denied = guarded([chat(piece) for piece in pieces], Deny(pattern), max(look_behind, 6))
        # `$` and `\b` hold where a text ends, not where one ended once.
        assert (denied is not None) is (re.search(pattern, text) is not None)
