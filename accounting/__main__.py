"""`python -m accounting`: play transcripts through the real exchange, and print what was counted of each.

Exit status 1 when a reported usage was not counted exactly, an exchange was not settled exactly once, estimates are
further off than they may be, or a transcript cannot be read.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from accounting.ledger import Ledger, account
from accounting.page import markdown, text
from accounting.transcript import Transcript, TranscriptError, load
from accounting.truth import TRANSCRIPTS
from accounting.vocabularies import directory_of
from extproc.usage.vocabulary import Vocabulary
from extproc.usage.vocabulary_files import VocabularyError


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 for what the module's documentation names."""
    options = _parser().parse_args(arguments)
    try:
        ledger = _accounted(load(options.folder), options.vocabulary)
    except (TranscriptError, VocabularyError, OSError) as error:
        print(f"accounting: {error}", file=sys.stderr)
        return 1
    print(text(ledger))
    for problem in ledger.problems:
        print(f"wrong: {problem}", file=sys.stderr)
    if options.write is None:
        return int(bool(ledger.problems))
    if not ledger.vocabulary:
        print(f"accounting: {options.write} is not written without a vocabulary", file=sys.stderr)
        return 1
    options.write.write_text(markdown(ledger), encoding="utf-8")
    return int(bool(ledger.problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m accounting", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=TRANSCRIPTS,
        metavar="FOLDER",
        help="of transcripts, or one file of them",
    )
    parser.add_argument("--vocabulary", type=Path, metavar="DIR", help="filled by `extproc vocab`")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as a page of Markdown too")
    return parser


def _accounted(transcripts: list[Transcript], given: Path | None) -> Ledger:
    """Raises TranscriptError, VocabularyError or OSError."""
    with directory_of(given) as directory:
        vocabulary = None if directory is None else Vocabulary.open(directory)
        if vocabulary is not None:
            vocabulary.load()
            if not vocabulary.loaded:
                raise VocabularyError(vocabulary.reason)
    return asyncio.run(account(transcripts, vocabulary))


if __name__ == "__main__":
    sys.exit(main())
