"""`python -m accounting.truth`: are the true counts of estimated transcripts those of their texts?

Nothing of the server counts here but tiktoken itself: texts are those that a transcript names in `counted_from`, or
the `pieces` of which it says that they were delivered, and a chat has the overhead that OpenAI documents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accounting.answer import answer_of
from accounting.transcript import CountedFrom, Counts, Transcript, TranscriptError, load
from accounting.vocabularies import directory_of
from extproc.usage.vocabulary_files import DEFAULT_ENCODINGS, Definitions, VocabularyError

if TYPE_CHECKING:
    from tiktoken import Encoding

TRANSCRIPTS = Path(__file__).parent / "transcripts"
_MESSAGE, _ROLE, _ANSWER = 3, 1, 3
"""Tokens around every message, of its role, and with which every answer begins."""


class Tokens:
    """The encodings of one directory. Raises VocabularyError or OSError when one is not there."""

    def __init__(self, directory: Path) -> None:
        definitions = Definitions()
        self._encodings: dict[str, Encoding] = {
            name: definitions.encoding(name, definitions.file(name).read(directory)) for name in DEFAULT_ENCODINGS
        }

    def true_usage(self, transcript: Transcript) -> Counts:
        """What the texts of an estimated transcript come to; what its answer tells stands as it is written."""
        how = transcript.counted_from or CountedFrom()
        prompt, completion = transcript.usage.prompt_tokens, transcript.usage.completion_tokens
        if how.prompt != "reported":
            overhead = how.messages * (_MESSAGE + _ROLE) + (_ANSWER if how.messages else 0)
            prompt = overhead + self._count(how.prompt, how.encoding)
        if how.completion != "reported":
            texts = answer_of(transcript).texts if how.completion == "pieces" else how.completion
            completion = self._count(texts, how.encoding)
        return transcript.usage.model_copy(
            update={
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            }
        )

    def _count(self, texts: Iterable[str], encoding: str) -> int:
        return sum(len(self._encodings[encoding].encode_ordinary(text)) for text in texts)


def differing(transcripts: Iterable[Transcript], tokens: Tokens) -> list[str]:
    """A line for each estimated transcript whose written usage is not that of its texts."""
    lines = []
    for transcript in transcripts:
        if transcript.source != "estimated":
            continue
        true = tokens.true_usage(transcript)
        if true != transcript.usage:
            lines.append(f"{transcript.name}: {_brief(transcript.usage)} is written, {_brief(true)} are in its texts")
    return lines


def _brief(usage: Counts) -> str:
    return f"{usage.prompt_tokens} + {usage.completion_tokens} = {usage.total_tokens}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every number is that of its text, else 1."""
    parser = argparse.ArgumentParser(prog="python -m accounting.truth", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=TRANSCRIPTS, metavar="FOLDER")
    parser.add_argument("--vocabulary", type=Path, metavar="DIR", help="filled by `extproc vocab`")
    options = parser.parse_args(arguments)
    try:
        with directory_of(options.vocabulary) as directory:
            if directory is None:
                raise VocabularyError("no vocabulary: pip install tiktoken bpe-openai, or name one that is filled")
            lines = differing(load(options.folder), Tokens(directory))
    except (TranscriptError, VocabularyError, OSError) as error:
        print(f"accounting: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines) or "every true count is that of its texts")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
