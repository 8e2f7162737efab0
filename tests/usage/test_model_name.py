"""The model that a request names in its URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.usage.model_name import model_from_path

ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.meta.llama3-1-8b-instruct-v1:0"

PATHS = {
    "/model/amazon.nova-lite-v1%3A0/converse": "amazon.nova-lite-v1:0",
    "/model/amazon.nova-lite-v1:0/converse-stream": "amazon.nova-lite-v1:0",
    "/model/meta.llama3-8b-instruct-v1%3a0/invoke": "meta.llama3-8b-instruct-v1:0",
    "/model/mistral.mistral-large/invoke-with-response-stream?x=/model/other/invoke": "mistral.mistral-large",
    f"/model/{ARN.replace(':', '%3A').replace('/', '%2F')}/converse": ARN,
    f"/model/{ARN}/invoke": ARN,
    "/v1beta/models/gemini-2.5-flash:generateContent": "gemini-2.5-flash",
    "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse&key=k": "gemini-2.5-flash",
    "/v1beta/models/gemini-2.5-flash%3AgenerateContent": "gemini-2.5-flash",
    "/v1beta/tunedModels/my-tune:generateContent": "my-tune",
    "/v1/projects/p/locations/l/publishers/google/models/gemini-1.5-pro@002:generateContent": "gemini-1.5-pro@002",
    "/v1/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict": (
        "claude-sonnet-4@20250514"
    ),
    "/openai/deployments/my-gpt-4o/chat/completions?api-version=2024-10-21": "my-gpt-4o",
    "/openai/deployments/gpt%204/embeddings": "gpt 4",
    "/v1/chat/completions": "",
    "/v1/models/gpt-4o": "",
    "/v1/models/ft:gpt-4o-mini:acme::id": "",
    "/v1/chat/completions?next=/openai/deployments/d/chat": "",
    "/model//converse": "",
    "/api/chat": "",
    "": "",
}


@pytest.mark.parametrize(("path", "model"), PATHS.items(), ids=PATHS)
def test_paths(path: str, model: str) -> None:
    assert model_from_path(path) == model


def test_long_names_are_cut() -> None:
    assert model_from_path(f"/openai/deployments/{'%41' * 300}/chat") == "A" * 128


@given(st.text(max_size=200) | st.text(alphabet="/model:s%3A2F?x", max_size=200))
def test_any_path_gives_some_name(path: str) -> None:
    assert len(model_from_path(path)) <= 128
    assert len(model_from_path(f"/model/{path}/invoke")) <= 128
