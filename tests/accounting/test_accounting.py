"""The accounting report: every answer is counted, exactly where it says what it used, and near where it does not."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.vocabularies import fill_directory

from accounting.__main__ import main
from accounting.answer import answer_of
from accounting.ledger import Ledger, account, wrong
from accounting.page import markdown, summary, text
from accounting.play import Played, Stage
from accounting.transcript import Transcript, TranscriptError, load
from accounting.truth import TRANSCRIPTS, Tokens, differing
from accounting.truth import main as check_truth
from extproc.bodies.decoders import decoder_for
from extproc.usage.dialects import DIALECTS
from extproc.usage.usage import Usage
from extproc.usage.vocabulary import Vocabulary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accounting.md"
CORPUS = load(TRANSCRIPTS)
CODINGS = ("gzip", "deflate", "br", "zstd")

PLAIN: dict[str, Any] = {
    "name": "plain",
    "dialect": "openai",
    "request": {"path": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Say hello."}]}},
    "response": {
        "headers": {"content-type": "application/json"},
        "body": {
            "json": {
                "object": "chat.completion",
                "choices": [{"message": {"role": "assistant", "content": "Hello!"}}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
            }
        },
    },
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    "source": "reported",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_directory(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def vocabulary(directory: Path) -> Vocabulary:
    vocabulary = Vocabulary.open(directory)
    vocabulary.load()
    return vocabulary


@pytest.fixture(scope="module")
def ledger(vocabulary: Vocabulary) -> Ledger:
    return asyncio.run(account(CORPUS, vocabulary))


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def written(folder: Path, *transcripts: Any, name: str = "some.json") -> Path:
    """A file of transcripts."""
    path = folder / name
    path.write_text(json.dumps({"transcripts": list(transcripts)}))
    return path


def changed(field: str, value: Any) -> dict[str, Any]:
    """PLAIN with another value at a dotted field; `...` takes it away."""
    transcript = copy.deepcopy(PLAIN)
    *way, last = field.split(".")
    place = transcript
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return transcript


def loaded(folder: Path, transcript: dict[str, Any]) -> Transcript:
    return load(written(folder, transcript))[0]


# --- the corpus ------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_runner_prints(ledger: Ledger) -> None:
    assert PAGE.read_text() == markdown(ledger), "run `make accounting`"


def test_nothing_is_wrong(ledger: Ledger) -> None:
    assert ledger.problems == ()


def test_reported_usage_is_counted_exactly(ledger: Ledger) -> None:
    assert {row.transcript.name: (row.without, row.counted) for row in ledger.exact} == {
        row.transcript.name: (row.true, row.true) for row in ledger.exact
    }


def test_estimates_are_near(ledger: Ledger) -> None:
    """The bounds are those of `make accounting`; most estimates keep well within."""
    assert ledger.with_vocabulary is not None
    assert ledger.without_vocabulary is not None
    assert ledger.with_vocabulary.median <= 0.05
    assert ledger.without_vocabulary.median <= 0.25


def test_the_corpus_is_large_enough() -> None:
    assert len(CORPUS) >= 60


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_played_in_every_way(dialect: str) -> None:
    mine = [each for each in CORPUS if each.dialect == dialect]
    documents = [each for each in mine if each.form in ("JSON", "JSON array")]
    streams = [each for each in mine if each.form not in ("JSON", "JSON array")]
    told = {(each.encoding is not None, each.ending) for each in documents if each.source == "reported"}
    assert told >= {(False, "complete"), (True, "complete")}
    assert {each.encoding is not None for each in streams if each.source == "reported"} == {False, True}
    assert {each.ending for each in streams if each.source == "estimated"} >= {"client_gone", "upstream_cut"}
    assert any(each.after and each.after.bytes for each in streams), "cut within an event"
    assert any(each.ending == "complete" for each in mine if each.source == "estimated"), "no usage"


def test_every_coding_is_played_in_every_form_and_ending() -> None:
    assert {each.encoding for each in CORPUS} == {None, *CODINGS}
    assert {each.form for each in CORPUS} == {"JSON", "JSON array", "SSE", "NDJSON", "event stream"}
    cut = {each.encoding for each in CORPUS if each.ending != "complete"}
    assert cut == {None, *CODINGS}


def test_true_counts_are_those_of_the_texts(directory: Path) -> None:
    assert differing(CORPUS, Tokens(directory)) == []


def test_every_estimate_says_what_it_was_counted_from() -> None:
    assert [each.name for each in CORPUS if (each.source == "estimated") != (each.counted_from is not None)] == []


@pytest.mark.parametrize("size", [61, 4096])
async def test_how_an_answer_is_cut_into_chunks_changes_nothing(stage: Stage, size: int) -> None:
    for transcript in CORPUS:
        usual = await stage.play(transcript)
        cut = await stage.play(transcript.model_copy(update={"chunks": size}))
        assert cut == usual, transcript.name


# --- the runner ------------------------------------------------------------------------------------------------------


def test_a_wrong_count_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path, PLAIN))]) == 0
    path = written(tmp_path, changed("usage.prompt_tokens", 11))
    assert main([str(path)]) == 1
    printed = capsys.readouterr()
    assert "wrong: plain: prompt_tokens is 10, not 11" in printed.err
    assert "reported: 0 of 1 exact" in printed.out


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("usage.cached_tokens", 5, "cached_tokens is 0, not 5"),
        ("usage.total_tokens", 13, "total_tokens is 12, not 13"),
        ("source", "estimated", "the source is reported, not estimated"),
        ("response.status", 500, "settled 0 times, and reported 0 times"),
    ],
)
async def test_whatever_is_not_as_written_is_a_problem(
    tmp_path: Path, stage: Stage, field: str, value: Any, problem: str
) -> None:
    transcript = loaded(tmp_path, changed(field, value))
    assert wrong(transcript, await stage.play(transcript)) == [problem]


@pytest.mark.parametrize(
    ("played", "problem"),
    [
        (Played((), ()), "settled 0 times, and reported 0 times"),
        (Played((Usage(10, 2, 12, source="reported"),) * 2, (12, 12)), "settled 2 times, and reported 2 times"),
        (Played((Usage(10, 2, 12, source="reported"),), (12, 12)), "settled 1 times, and reported 2 times"),
        (Played((Usage(10, 2, 12, source="reported"),), ()), "the limiter was told (), and 12 tokens were counted"),
        (Played((Usage(10, 2, 12, source="reported"),), (1,)), "the limiter was told (1,), and 12 tokens were counted"),
        (
            Played((Usage(10, 2, 12, source="reported", ending="client_gone"),), (12,)),
            "the ending is client_gone, not complete",
        ),
    ],
)
def test_every_exchange_is_settled_and_reported_once(tmp_path: Path, played: Played, problem: str) -> None:
    assert wrong(loaded(tmp_path, PLAIN), played) == [problem]


def test_charging_for_an_error_is_a_problem(tmp_path: Path) -> None:
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    transcript = loaded(tmp_path, {**PLAIN, "source": "none", "usage": nothing})
    assert wrong(transcript, Played((), ())) == []
    assert wrong(transcript, Played((Usage(10, 2, 12),), (12,))) == ["charged (12,), and nothing was used"]


def test_estimates_that_are_far_off_fail(ledger: Ledger) -> None:
    far = replace(ledger, rows=tuple(replace(row, counted=row.true * 2, without=row.true * 2) for row in ledger.rows))
    assert [problem for problem in far.problems if problem.startswith("estimates")] == [
        "estimates with a vocabulary: median error 100.0%, more than 5%",
        "estimates without a vocabulary: median error 100.0%, more than 25%",
    ]


async def test_without_a_vocabulary_the_rest_is_still_accounted() -> None:
    reduced = await account(CORPUS[:10], None)
    assert reduced.problems == ()
    assert summary(reduced)[2] == "estimated with a vocabulary: none"
    assert text(reduced).splitlines()[1].split()[-2:] == ["0", "-"]


def test_the_page_is_written_where_one_asks(
    tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    arguments = [str(written(tmp_path, PLAIN)), "--vocabulary", str(directory), "--write", str(page)]
    assert main(arguments) == 0
    assert "| plain | openai | JSON | - | complete | reported | 12 | 12 | 0 | - |" in page.read_text()
    assert main([*arguments[:1], "--vocabulary", str(tmp_path), "--write", str(page)]) == 1
    assert "no vocabulary in" in capsys.readouterr().err


def test_a_true_count_that_is_made_up_is_found(
    tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"prompt": ["Say hello."], "messages": 1, "completion": ["Hello!"]}
    transcript = {**PLAIN, "source": "estimated", "counted_from": texts}
    arguments = ["--vocabulary", str(directory)]
    assert check_truth([str(written(tmp_path, transcript)), *arguments]) == 0
    transcript["usage"] = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    assert check_truth([str(written(tmp_path, transcript)), *arguments]) == 1
    assert "plain: 10 + 3 = 13 is written, 10 + 2 = 12 are in its texts" in capsys.readouterr().out


# --- transcripts of one's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transcript", "told"),
    [
        (changed("usage.prompt_tokens", "10"), "plain: `usage.prompt_tokens`: Input should be a valid integer"),
        (changed("usage.prompt_tokens", -1), "plain: `usage.prompt_tokens`: Input should be greater than"),
        (changed("usage", ...), "plain: `usage`: Field required"),
        (changed("source", "guessed"), "plain: `source`: Input should be 'reported', 'estimated' or 'none'"),
        (changed("encoding", "rot13"), "plain: `encoding`: Input should be 'gzip'"),
        (changed("chunks", 0), "plain: `chunks`: Input should be greater than 0"),
        (changed("ending", "client_gone"), "plain: `after` belongs to a cut answer"),
        (changed("response.body.text", "too"), "plain: `response.body`: expected exactly one of"),
        (changed("response.body", {}), "plain: `response.body`: expected exactly one of"),
        (changed("response.body", {"base64": "?"}), "plain: `response.body.base64`: is not base64"),
        (changed("response.body", {"events": [{"pieces": 1}]}), "plain: `response.body.events`: event 0: `pieces` is"),
        (
            changed("response.body", {"events": [{"pieces": "a", "in": {}}]}),
            "plain: `response.body.events`: event 0: `in` has no {piece}",
        ),
        (changed("misspelt", 1), "plain: `misspelt`: Extra inputs are not permitted"),
        (changed("name", ...), "transcript 1: `name`: Field required"),
        ("no transcript", "transcript 1: Input should be a valid dictionary"),
    ],
)
def test_a_bad_transcript_is_refused_by_file_name_and_field(
    tmp_path: Path, transcript: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, transcript)
    with pytest.raises(TranscriptError) as refused:
        load(path)
    assert str(refused.value).startswith(f"some.json: {told}")
    assert main([str(path)]) == 1
    assert told in capsys.readouterr().err


def test_two_transcripts_of_one_name_are_refused(tmp_path: Path) -> None:
    written(tmp_path, PLAIN, name="a.json")
    written(tmp_path, PLAIN, name="b.json")
    with pytest.raises(TranscriptError, match=r"b.json: plain: `name`: another transcript has it already"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "transcripts: 1", "transcripts: {", "\0", "more: 1\ntranscripts: []"])
def test_a_file_that_holds_no_transcripts_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(TranscriptError, match=r"^bad.yaml: "):
        load(tmp_path)


def test_a_folder_without_transcripts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match="no transcripts"):
        load(tmp_path)
    with pytest.raises(TranscriptError, match="No such file"):
        load(tmp_path / "missing")


def test_an_answer_cannot_be_cut_behind_its_end(tmp_path: Path) -> None:
    transcript = loaded(tmp_path, {**PLAIN, "ending": "client_gone", "after": {"bytes": 100_000}})
    with pytest.raises(TranscriptError, match="plain: `after`: the answer is over before"):
        answer_of(transcript)


async def test_the_example_of_the_readme_is_a_transcript(tmp_path: Path, directory: Path, stage: Stage) -> None:
    readme = (TRANSCRIPTS.parent / "README.md").read_text()
    example = yaml.safe_load(readme.partition("```yaml\n")[2].partition("```")[0])
    transcript = load(written(tmp_path, *example["transcripts"]))[0]
    assert wrong(transcript, await stage.play(transcript)) == []
    assert differing([transcript], Tokens(directory)) == []


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("ending", ["complete", "client_gone"])
def test_encodings_are_flushed_after_every_event(tmp_path: Path, coding: str, ending: str) -> None:
    transcript = changed("response.body", {"events": [{"pieces": "Hello, you.", "size": 1, "in": {"t": "{piece}"}}]})
    transcript["response"]["headers"] = {"content-type": "application/x-ndjson"}
    cut = {"after": {"events": 4, "bytes": 3}} if ending == "client_gone" else {}
    answer = answer_of(loaded(tmp_path, {**transcript, "encoding": coding, "ending": ending, **cut}))
    decoder = decoder_for(coding, 1 << 20)
    assert decoder is not None
    decoded = [b"".join(decoder.decode(chunk)) for chunk in answer.chunks]
    assert decoded[:4] == [b'{"t":"H"}\n', b'{"t":"e"}\n', b'{"t":"l"}\n', b'{"t":"l"}\n']
    assert answer.texts == (("Hell",) if cut else ("Hello, you.",))
    assert decoded[4] == (b'{"t' if cut else b'{"t":"o"}\n')
