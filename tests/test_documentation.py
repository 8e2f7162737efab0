"""Documents say what the code does, or fail here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from extproc.cli import main
from tools.generate_configuration_docs import TARGET, page

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("accounting", "bench", "deploy", "docs")
PAGES = sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))])


def test_the_configuration_page_is_made_from_the_schema() -> None:
    assert TARGET.read_text() == page(), "run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_nothing_is_left_to_fill_in() -> None:
    for path in PAGES:
        assert not re.search(r"@[A-Z]+@", path.read_text()), path


def test_the_readme_names_only_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("command", ["serve", "check", "schema", "limiter", "simulator", "demo"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert re.search(r"usage: extproc \w+ \[-h\].*\n\n[A-Z].{20}", capsys.readouterr().out, re.DOTALL)


def test_the_shipped_configuration_is_valid_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """S0.D9: the shipped one cannot be bypassed."""
    assert main(["check", "--strict", str(ROOT / "deploy" / "extproc.yaml")]) == 0
    explanation = capsys.readouterr()
    assert explanation.err == ""
    for words in ("*.example.com", "CheckRateLimit", "Report", "limitador:8081", "/v1/chat/completions", "429"):
        assert words in explanation.out


def test_the_example_of_the_identity_page_is_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S1.D5: what documents show is run."""
    example, keys = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "identity.md").read_text(), re.DOTALL)[:2]
    (tmp_path / "extproc.yaml").write_text(example)
    (tmp_path / "keys.yaml").write_text(keys.replace("sha256:...", "key"))
    assert main(["check", "--strict", str(tmp_path / "extproc.yaml")]) == 0
    assert "2 API keys" in capsys.readouterr().out


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_anchors_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    headings = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)}
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings, anchor
