"""What a request says, and who says it: the texts of a request body of any dialect, as strictly as a guard reads them.

A count of tokens may be wrong about a field; a guard may not. So whatever some server would show to a model is a text,
in whichever case its name is spelled, and what cannot be read for certain is not skipped: there are no texts then.
Attachments, such as images, and what servers store themselves are not looked into. What a text looks like to somebody
who reads the JSON in it is a text as well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain
from typing import Any, Final, NamedTuple

import orjson

from extproc.guards.growing_texts import Escapes, is_json
from extproc.guards.seam import Path, Text

USER: Final = "user"
SYSTEM: Final = "system"
ASSISTANT: Final = "assistant"
TOOL: Final = "tool"
TOOLS: Final = "tools"
"""Who says the definitions of tools, and which form an answer is to have. No message can be said by it."""
EVERYBODY: Final = "*"

_ROLES: Final = {
    **{role: role for role in (USER, SYSTEM, "developer", ASSISTANT, TOOL)},
    "function": TOOL,
    "model": ASSISTANT,
    "chatbot": ASSISTANT,
}

_MAX_VALUES: Final = 10_000
"""Members of lists and objects that are looked at."""
_FEW_NAMES: Final = 16
"""Names of one object that cost nothing to look at."""
_MAX_DEPTH: Final = 64
"""Keys and indices of a path."""
_MAX_MARKS: Final = 300_000
"""Quotes, commas and opening brackets: parsing that many takes up to 30 ms, and nobody else runs meanwhile."""
_MAX_OBJECTS: Final = 50_000
_MARKS: Final = b'",{['


def role_of(name: object) -> str:
    """Whose role a message's `role` is: `user` unless it is known to be another's, in any case.

    Servers refuse a role that they do not know, drop it, or pass it on to the model, which takes it for a user.
    """
    return _ROLES.get(name.lower(), USER) if isinstance(name, str) else USER


def read_texts(document: Any, *, definitions: bool = True) -> tuple[Text, ...] | None:
    """The texts of a parsed request body, in its order; without those of tools' definitions unless `definitions`.

    None where they cannot be found for certain: it is no object, has no field that is known for a prompt, a known one
    is of another type than any API has there (also token ids and embeddings, which hide their text), or it is too
    much. `message` numbers the messages of all lists. Of structured values, such as the arguments of a call, all
    strings, numbers and names of members are texts; a name stands where its object stands.
    """
    if not isinstance(document, dict):
        return None
    reader = _Reader(definitions)
    try:
        reader.request(document, USER, ())
        return reader.read()
    except (_UnreadableError, orjson.JSONEncodeError):
        return None


def select(texts: Sequence[Text], roles: frozenset[str], last_user_message_only: bool) -> tuple[Text, ...]:
    """The texts of `roles`, `*` for all.

    With `last_user_message_only` those of a user's earlier messages are left out: in each list of messages, as only
    the server knows which list counts. What stands beside messages stays.
    """
    wanted = {role if role in (EVERYBODY, TOOLS) else role_of(role) for role in roles}
    chosen = tuple(texts) if EVERYBODY in wanted else tuple(text for text in texts if text.role in wanted)
    if not last_user_message_only:
        return chosen
    users = {text.message: text.path for text in texts if text.role == USER and text.message >= 0}
    last = {_list_of(path): message for message, path in users.items()}
    kept = {-1, *last.values()}
    return tuple(text for text in chosen if text.role != USER or text.message in kept)


def is_beside(text: Text) -> bool:
    """Whether it is a name or a stop sequence: a model is shown it, but nobody says it."""
    names = [_fold(step) for step in text.path if isinstance(step, str)]
    return bool(names) and names[-1] in _BESIDE


def statements(texts: Sequence[Text]) -> Iterator[str]:
    """All texts, and the parts of one message as one: servers put nothing between them, or a line's end.

    Each as it is, and, if it is JSON such as the arguments of a call, with its escapes resolved as well.
    """
    for text in _said(texts):
        yield text
        yield from _resolved(text)


def all_lines(texts: Sequence[Text]) -> str:
    """One text that has all statements in it, each between the ends of lines."""
    said = _said(texts)
    return "\n".join(chain(said, *map(_resolved, said)))


def _said(texts: Sequence[Text]) -> list[str]:
    said = [text.text for text in texts]
    for pieces in _messages_in_parts(texts).values():
        said += ("".join(pieces), "\n".join(pieces))
    return said


def _resolved(text: str) -> Iterable[str]:
    return (Escapes().resolve(text),) if "\\" in text and is_json(text) else ()


def has_repeated_names(body: bytes) -> bool:
    """Whether an object in a JSON body names a member twice, or it is too much to tell.

    Of two values parsers keep the first or the last, so the text that is looked at need not be the one that a model
    gets.
    """
    if body.count(b"{") > _MAX_OBJECTS or len(body) - len(body.translate(None, _MARKS)) > _MAX_MARKS:
        return True
    try:
        _NAMES.decode(body.decode())
    except (ValueError, RecursionError):
        return True
    return False


def _refuse_repetition(members: list[tuple[str, Any]]) -> None:
    if len(members) > 1 and len({name for name, _ in members}) != len(members):
        raise ValueError


_NAMES: Final = json.JSONDecoder(object_pairs_hook=_refuse_repetition)


def _list_of(path: Path) -> Path:
    """Where the list is in which a message stands."""
    for index, step in enumerate(path):
        before = path[index - 1]
        if isinstance(step, int) and not isinstance(before, int) and _fold(before) not in _LISTS_OF_REQUESTS:
            return path[:index]
    return path


def _messages_in_parts(texts: Sequence[Text]) -> dict[object, list[str]]:
    """The parts of each message that has several. Inputs and documents side by side are no parts of anything."""
    siblings = Counter([text.message for text in texts])
    if len(siblings) == len(texts):
        return {}
    parts: dict[object, list[str]] = {}
    wholes: dict[tuple[int, Path], object] = {}
    apart: Path = ("",)
    for text in texts:
        number, path = text.message, text.path
        if siblings[number] == 1 or path[: len(apart)] == apart:
            continue
        place = number, _without_index(path) if number >= 0 else path
        if place not in wholes:
            wholes[place] = _whole(text)
        whole = wholes[place]
        if whole is not None:
            parts.setdefault(whole, []).append(text.text)
        elif number >= 0:
            apart = path
    return {whole: pieces for whole, pieces in parts.items() if len(pieces) > 1}


def _without_index(path: Path) -> Path:
    """What texts of one message that stand side by side in a list have in common, and no others."""
    if isinstance(path[-1], int):
        return path[:-1]
    return path[:-2] + path[-1:] if len(path) > 1 and isinstance(path[-2], int) else path


def _whole(text: Text) -> object:
    """What a text is a part of, None for nothing."""
    place = _list_of(text.path)
    if any(isinstance(step, str) and _fold(step) in _NO_PROSE for step in text.path[len(place) :]):
        return None
    if text.message >= 0:
        return text.message
    return place if text.role == SYSTEM and len(place) < len(text.path) else None


def _fold(step: str) -> str:
    """Some servers find members in any case, or spelled like_this and likeThis."""
    if step in _FOLDED:
        return step
    return step.casefold().replace("_", "")


class _UnreadableError(Exception):
    """Something stands where texts may be and is not understood, or there is too much of it."""


class _Reader:
    """Collects texts. Its own stack instead of recursion: depth is the client's choice."""

    __slots__ = ("_definitions", "_left", "_message", "_messages", "_stack", "_texts")

    def __init__(self, definitions: bool) -> None:
        self._definitions = definitions
        self._texts: list[Text] = []
        self._stack: list[_Value] = []
        self._left = _MAX_VALUES
        self._messages = 0
        self._message = -1

    def read(self) -> tuple[Text, ...]:
        """Empty the stack."""
        while self._stack:
            read, value, role, path, self._message = self._stack.pop()
            if value is not None:
                read(self, value, role, path)
        return tuple(self._texts)

    def request(self, value: Any, role: str, path: Path) -> None:
        """A body, or what has the fields of one."""
        if not isinstance(value, dict):
            raise _UnreadableError
        self._look_at_names(value)
        fields = [(name, _FIELDS.get(_fold(name))) for name in value]
        known = [(name, field) for name, field in fields if field is not None]
        if all(field.is_beside for _, field in known):
            raise _UnreadableError
        self._push(
            [
                (field.read, value[name], field.role, (*path, name), -1)
                for name, field in known
                if self._definitions or field.role != TOOLS
            ]
        )

    def requests(self, value: Any, role: str, path: Path) -> None:
        """Several, or texts in their place."""
        if isinstance(value, list):
            self._each(_Reader.requests, value, role, path)
        elif isinstance(value, str):
            self._text(value, role, path)
        else:
            self.request(value, role, path)

    def messages(self, value: Any, role: str, path: Path) -> None:
        """A list of messages. The most usual ones are read without a detour."""
        if not isinstance(value, list):
            raise _UnreadableError
        self._afford(len(value))
        if not all(isinstance(message, dict) for message in value):
            raise _UnreadableError
        plain = _plain(value, path, "role", "content")
        self._texts += [
            Text(role_of(message["role"]), message["content"], (*path, index, "content"), self._messages + index)
            for index, message in enumerate(value[:plain])
        ]
        self._left -= plain
        self._push(
            [
                (_Reader.turn, value[index], role, (*path, index), self._messages + index)
                for index in range(plain, len(value))
            ]
        )
        self._messages += len(value)

    def turn(self, value: dict[str, Any], role: str, path: Path) -> None:
        """One message of a list."""
        self._afford(len(value))
        self.part(value, _role(value), path)

    def item(self, value: dict[str, Any], role: str, path: Path) -> None:
        """One item of the input of Responses."""
        self._afford(len(value))
        self.part(value, _role(value, typed=True), path)

    def message(self, value: Any, role: str, path: Path) -> None:
        """The one message that a whole field is."""
        self._message = self._messages
        self._messages += 1
        self.content(value, role, path)

    def input(self, value: Any, role: str, path: Path) -> None:
        """Responses: a message or a list of items, which may have a type in a role's place. Embeddings: strings.

        DashScope has its whole request in it.
        """
        if isinstance(value, dict):
            self.request(value, role, path)
            return
        if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
            self.strings(value, role, path)
            return
        self._afford(len(value))
        items: list[_Value] = []
        for index, item in enumerate(value):
            if isinstance(item, dict):
                items.append((_Reader.item, item, role, (*path, index), self._messages))
                self._messages += 1
            else:
                items.append((_Reader.strings, item, role, (*path, index), -1))
        self._push(items)

    def strings(self, value: Any, role: str, path: Path) -> None:
        """A string, or a list of them. Of an object, such as the variables of a stored prompt, all strings."""
        if isinstance(value, list):
            self._each(_Reader.strings, value, role, path)
        elif isinstance(value, dict):
            self.structured(value, role, path)
        else:
            self._text(value, role, path)

    def text(self, value: Any, role: str, path: Path) -> None:
        """A prompt, or of Responses how the answer is to be formatted."""
        if not isinstance(value, dict):
            self.strings(value, role, path)
        elif self._definitions:
            self.structured(value, TOOLS, path)

    def settings(self, value: Any, role: str, path: Path) -> None:
        """Of an answer; among them some that are told the model."""
        if not isinstance(value, dict):
            return
        self._look_at_names(value)
        known = [(name, _SETTINGS.get(_fold(name))) for name in value]
        self._push(
            [
                (field.read, value[name], field.role, (*path, name), -1)
                for name, field in known
                if field is not None and (self._definitions or field.role != TOOLS)
            ]
        )

    def content(self, value: Any, role: str, path: Path) -> None:
        """A string, a part, or a list of them. The most usual parts are read without a detour."""
        if isinstance(value, list):
            self._afford(len(value))
            plain = _plain(value, path, "type", "text")
            self._texts += [
                Text(role, part["text"], (*path, index, "text"), self._message)
                for index, part in enumerate(value[:plain])
            ]
            self._left -= plain
            self._each(_Reader.content, value, role, path, plain)
        elif isinstance(value, dict):
            self.part(value, role, path)
        else:
            self._text(value, role, path)

    def part(self, value: Any, role: str, path: Path) -> None:
        """A message or a part of one; unreadable where nothing in it is known but there is something."""
        self._look_at_names(value)
        members: list[_Value] = []
        unknown = said = False
        for name, member in value.items():
            read = _PARTS.get(_fold(name))
            if read is None:
                unknown = True
            elif read is not _Reader.nothing:
                members.append((read, member, role, (*path, name), self._message))
                said = said or read is not _Reader.name
        if unknown and not said:
            raise _UnreadableError
        self._push(members)

    def call(self, value: Any, role: str, path: Path) -> None:
        """A call of a tool, or several: their arguments, wherever they are."""
        if isinstance(value, list):
            self._each(_Reader.call, value, role, path)
            return
        if not isinstance(value, dict):
            raise _UnreadableError
        self._look_at_names(value)
        self._push(
            [
                (_PARTS[_fold(name)], member, role, (*path, name), self._message)
                for name, member in value.items()
                if _fold(name) in _CALLS
            ]
        )

    def name(self, value: Any, role: str, path: Path) -> None:
        """Of who speaks or of what is called. It makes nothing of a part that has nothing else that is known."""
        self.structured(value, role, path)

    def structured(self, value: Any, role: str, path: Path) -> None:
        """JSON as a model is shown it."""
        if isinstance(value, dict):
            self._afford(len(value))
            for name in value:
                self._text(name, role, path)
            self._push([(_Reader.structured, value[name], role, (*path, name), self._message) for name in value])
        elif isinstance(value, list):
            self._each(_Reader.structured, value, role, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._text(orjson.dumps(value).decode(), role, path)
        elif isinstance(value, str):
            self._text(value, role, path)

    def source(self, value: Any, role: str, path: Path) -> None:
        """Where Anthropic and Bedrock have the content of a document: text, blocks, bytes or a URL."""
        if not isinstance(value, dict):
            self.content(value, role, path)
            return
        self._look_at_names(value)
        encoded = value.get("type") == "base64"
        self._push(
            [
                (_Reader.content, member, role, (*path, name), self._message)
                for name, member in value.items()
                if _fold(name) in ("content", "text") or (_fold(name) == "data" and not encoded)
            ]
        )

    def document(self, value: Any, role: str, path: Path) -> None:
        """A document of Bedrock's or Cohere's."""
        if not isinstance(value, dict):
            self.content(value, role, path)
            return
        self._look_at_names(value)
        readers = {"source": _Reader.source, "data": _Reader.structured}
        self._push(
            [
                (readers.get(_fold(name), _Reader.content), member, role, (*path, name), self._message)
                for name, member in value.items()
                if _fold(name) in ("source", "data", "text", "content", "title", "context")
            ]
        )

    def data(self, value: Any, role: str, path: Path) -> None:
        """Of a document; a string under this name may be anything in base64."""
        if not isinstance(value, str):
            self.structured(value, role, path)

    def attachment(self, value: Any, role: str, path: Path) -> None:
        """Not looked into."""

    def nothing(self, value: Any, role: str, path: Path) -> None:
        """Says nothing. A part may have nothing else."""

    def hidden(self, value: Any, role: str, path: Path) -> None:
        """A prompt whose text cannot be seen."""
        raise _UnreadableError

    def _text(self, value: Any, role: str, path: Path) -> None:
        if not isinstance(value, str):
            raise _UnreadableError
        self._texts.append(Text(role, value, path, self._message))

    def _each(self, read: _Read, values: list[Any], role: str, path: Path, start: int = 0) -> None:
        self._afford(len(values) - start)
        self._push([(read, values[index], role, (*path, index), self._message) for index in range(start, len(values))])

    def _afford(self, count: int) -> None:
        """Whether so many may still be looked at, before anything is made of them."""
        if count > self._left:
            raise _UnreadableError

    def _look_at_names(self, value: Sized) -> None:
        """Of an object whose members are not all read."""
        self._afford(len(value))
        self._left -= max(0, len(value) - _FEW_NAMES)

    def _push(self, values: Sequence[_Value]) -> None:
        self._left -= len(values)
        if self._left < 0 or (values and len(values[0][3]) > _MAX_DEPTH):
            raise _UnreadableError
        self._stack.extend(reversed(values))


def _plain(values: list[Any], path: Path, name: str, text: str) -> int:
    """How many of a list at `path` are, up to the first other one, objects of two strings with these names."""
    if len(path) + 2 > _MAX_DEPTH:
        return 0
    for index, value in enumerate(values):
        if (
            type(value) is not dict
            or len(value) != 2
            or type(value.get(name)) is not str
            or type(value.get(text)) is not str
        ):
            return index
    return len(values)


def _role(message: dict[str, Any], *, typed: bool = False) -> str:
    """Who says a message: a user where it says so in one of several spellings of the name, or says nothing.

    `typed`: what has no role has a type instead.
    """
    roles = {role_of(value) for name, value in message.items() if _fold(name) == "role"}
    if roles or not typed:
        return roles.pop() if len(roles) == 1 else USER
    types = [value for name, value in message.items() if _fold(name) == "type"]
    item = _fold(types[0]) if len(types) == 1 and isinstance(types[0], str) else ""
    if item.endswith("calloutput"):
        return TOOL
    return ASSISTANT if item == "reasoning" or item.endswith("call") else USER


_Read = Callable[[_Reader, Any, str, Path], None]
_Value = tuple[_Read, Any, str, Path, int]
"""Something to be read: how, what, who says it, where it stands, the number of its message."""


class _Field(NamedTuple):
    """Of a request."""

    read: _Read
    role: str = USER
    """Who says what does not say so itself."""
    is_beside: bool = False
    """Whether it is no prompt, and has to stand beside one."""


_FORM: Final = _Field(_Reader.structured, TOOLS, is_beside=True)
_SETTINGS: Final[dict[str, _Field]] = {
    # schemas of OpenAI, Anthropic, Ollama, Gemini, llama.cpp
    **dict.fromkeys(("responseformat", "outputformat", "outputconfig", "format", "jsonschema"), _FORM),
    **dict.fromkeys(("responseschema", "responsejsonschema", "grammar"), _FORM),
    # vLLM, SGLang, and what Bedrock hands on
    **dict.fromkeys(("guidedjson", "guidedchoice", "guidedregex", "guidedgrammar", "structuredoutputs"), _FORM),
    **dict.fromkeys(("regex", "ebnf", "additionalmodelrequestfields"), _FORM),
    **dict.fromkeys(("stop", "stopsequences"), _Field(_Reader.structured, USER, is_beside=True)),
    "chattemplatekwargs": _Field(_Reader.structured, SYSTEM, is_beside=True),
}
"""Fields beside a prompt that models are told, or that put words into their mouths."""

_LISTS_OF_REQUESTS: Final = frozenset(("requests", "instances", "inputs"))
_FIELDS: Final[dict[str, _Field]] = {
    **_SETTINGS,
    **dict.fromkeys(
        ("generationconfig", "inferenceconfig", "options", "parameters"), _Field(_Reader.settings, is_beside=True)
    ),
    # OpenAI, Anthropic, Bedrock Converse, Ollama, Cohere v2, Mistral; Gemini; Cohere v1; OpenAI's threads
    **dict.fromkeys(("messages", "contents", "chathistory", "additionalmessages"), _Field(_Reader.messages)),
    **dict.fromkeys(("content", "message"), _Field(_Reader.message)),
    **dict.fromkeys(("system", "systeminstruction", "instructions", "preamble"), _Field(_Reader.content, SYSTEM)),
    **dict.fromkeys(("additionalinstructions", "template", "chattemplate"), _Field(_Reader.content, SYSTEM)),
    "input": _Field(_Reader.input),
    "text": _Field(_Reader.text),
    "tooloutputs": _Field(_Reader.content, TOOL),
    # legacy completions, Ollama, Llama; Titan; reranking and embeddings of Cohere; AWS's images; stored prompts
    **dict.fromkeys(("prompt", "suffix", "inputtext", "texts", "query"), _Field(_Reader.strings)),
    **dict.fromkeys(("context", "data", "documents", "history", "textinput", "textprompts"), _Field(_Reader.strings)),
    **dict.fromkeys(("texttoimageparams", "promptvariables"), _Field(_Reader.strings)),
    "prediction": _Field(_Reader.content, ASSISTANT),
    "toolresults": _Field(_Reader.structured, TOOL),
    **dict.fromkeys(("tools", "functions", "toolconfig"), _Field(_Reader.structured, TOOLS)),
    # batches of Anthropic and Gemini, Vertex and KServe, Hugging Face; one request of a batch, and of a run
    **dict.fromkeys(_LISTS_OF_REQUESTS, _Field(_Reader.requests)),
    **dict.fromkeys(("params", "thread"), _Field(_Reader.request)),
    **dict.fromkeys(("promptembeds", "inputembeds", "prompttokenids", "inputids"), _Field(_Reader.hidden)),
}
"""Fields of a request that are prompt, by their names as `_fold` spells them."""

_CALLS: Final = frozenset(("name", "function", "custom", "call", "arguments", "args", "input", "parameters"))
"""Members of a tool call that are read."""
_STRUCTURED: Final = frozenset(
    (
        *("arguments", "args", "input", "parameters", "response", "json", "action", "actions", "operation"),
        *("queries", "results", "outputs", "toolresults", "variables", "tools"),
    )
)

_BESIDE: Final = frozenset(("name", "toolname", "stop", "stopsequences"))
_NAMES_OF_PARTS: Final = frozenset(("name", "toolname"))
_NO_PROSE: Final = _STRUCTURED | _NAMES_OF_PARTS
"""Members whose strings are no parts of what is said."""

_PARTS: Final[dict[str, _Read]] = {
    **dict.fromkeys(("content", "contents", "parts", "text", "message", "refusal", "title"), _Reader.content),
    **dict.fromkeys(("thinking", "reasoning", "reasoningcontent", "reasoningtext", "summary"), _Reader.content),
    **dict.fromkeys(("toolplan", "guardcontent", "transcript", "context", "error", "reason"), _Reader.content),
    **dict.fromkeys(("functionresponse", "toolresult", "citationscontent", "searchresult"), _Reader.content),
    **dict.fromkeys(("executablecode", "codeexecutionresult", "code", "stdout", "stderr", "output"), _Reader.content),
    **dict.fromkeys(("toolcalls", "function", "functioncall", "tooluse", "custom", "call"), _Reader.call),
    **dict.fromkeys(_STRUCTURED, _Reader.structured),
    "result": _Reader.structured,
    **dict.fromkeys(_NAMES_OF_PARTS, _Reader.name),
    **dict.fromkeys(("image", "images", "imageurl", "inputimage", "video", "videourl"), _Reader.attachment),
    **dict.fromkeys(("audio", "inputaudio", "file", "filedata", "fileid", "fileurl"), _Reader.attachment),
    **dict.fromkeys(("inlinedata", "fileuri", "documenturl", "referenceids", "cachepoint"), _Reader.attachment),
    **dict.fromkeys(("encryptedcontent", "redactedcontent", "thoughtsignature"), _Reader.attachment),
    "source": _Reader.source,
    "document": _Reader.document,
    "data": _Reader.data,
    **dict.fromkeys(("role", "type", "id", "status", "index", "callid", "toolcallid"), _Reader.nothing),
    **dict.fromkeys(("approve", "approvalrequestid", "cachecontrol", "errorcode"), _Reader.nothing),
}
"""Members of messages and their parts that are prompt, or known to be none that can be read."""

_FOLDED: Final = frozenset((*_FIELDS, *_PARTS))
