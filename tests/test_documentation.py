"""Documents say what the code does, or fail here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.cli import main
from tools.generate_configuration_docs import TARGET, page

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("accounting", "bench", "deploy", "docs")
SECTIONS = ("providers", "routing", "promptLimits", "precharge", "guards")
PAGES = sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))])


def test_the_configuration_page_is_made_from_the_schema() -> None:
    assert TARGET.read_text() == page(), "run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def test_nothing_is_left_to_fill_in() -> None:
    for path in PAGES:
        assert not re.search(r"@[A-Z]+@", path.read_text()), path


def test_the_readme_names_only_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("command", ["serve", "check", "schema", "limiter", "simulator", "demo", "envoy-config"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert re.search(r"usage: extproc [\w-]+ \[-h\].*\n\n[A-Z].{20}", capsys.readouterr().out, re.DOTALL)


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


@pytest.mark.parametrize("name", ["README.md", "docs/providers.md", "docs/guards.md", "docs/webhook-guard.md"])
def test_examples_of_providers_and_guards_are_configurations(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself, or together with those above it on the page, as it is meant."""
    page = ROOT / name
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    examples = [block for block in blocks if re.search(rf"^({'|'.join(SECTIONS)}):", block, re.MULTILINE)]
    assert examples
    above: dict[str, Any] = {}
    for example in examples:
        for variable in re.findall(r"env: (\w+)", example):
            monkeypatch.setenv(variable, "key")
        above |= yaml.safe_load(example)
        (tmp_path / "extproc.yaml").write_text(yaml.safe_dump(above))
        assert main(["check", "--strict", str(tmp_path / "extproc.yaml")]) == 0, capsys.readouterr().err
        assert main(["envoy-config", str(tmp_path / "extproc.yaml"), "--upstream", "model:80"]) == 0


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_anchors_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", path.read_text()):
        there = path.parent / target if target else path
        assert anchor in headings(there), f"{target}#{anchor}"


def headings(path: Path) -> set[str]:
    """The anchors of a page."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}
