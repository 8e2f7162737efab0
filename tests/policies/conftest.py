from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from policies.samples import Compile, Data, Refused

from extproc.config.errors import ConfigError
from extproc.config.files import Files
from extproc.policies import Compiled, compile_policies, read_policies


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Compiles documents that are written into one file."""

    def compile_documents(*documents: Data) -> Compiled:
        file = tmp_path / "policies.yaml"
        file.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        return compile_policies(read_policies([file], Files()))

    return compile_documents


@pytest.fixture
def refused(compiled: Compile) -> Refused:
    """The problems of documents that cannot be used, as `path: message`."""

    def problems(*documents: Data) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            compiled(*documents)
        assert all(problem.file.endswith("policies.yaml") for problem in caught.value.problems)
        return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]

    return problems
