"""What may be said of a tool, and what is wrong with what is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Configs


def tool(settings: str) -> str:
    return f"classifier: {{mcp_category_model: {{{settings}}}}}\n"


@pytest.mark.parametrize(
    "settings",
    [
        "enabled: false",
        "enabled: false, transport_type: http",
        "enabled: true, command: python, args: [tool.py], env: {TABLE: tenants.db}",
        "enabled: true, transport_type: stdio, command: python, tool_name: classify_text, threshold: 0.5",
        "enabled: true, transport_type: http, url: 'http://localhost:8090/mcp', timeout_seconds: 30",
        "enabled: true, transport_type: streamable-http, url: 'https://a.example/mcp', headers_env: {Authorization: T}",
        "enabled: true, command: x, forward_headers: [X-Region, x-plan]",
        "enabled: true, command: x, forward_headers: [Authorization], allow_secrets: true",
    ],
)
def test_these_load(configs: Configs, settings: str) -> None:
    configs.load(configs.good + tool(settings))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("enabled: true", "transport_type is stdio, which needs `command`: what starts the tool"),
        ("enabled: true, transport_type: http", "transport_type is http, which needs `url`: where the tool answers"),
        (
            "enabled: true, transport_type: streamable-http",
            "transport_type is streamable-http, which needs `url`: where the tool answers",
        ),
        (
            "enabled: true, command: x, forward_headers: [x-a, Authorization, Cookie]",
            "forward_headers would hand the client's authorization, cookie to the tool; take it out, or say "
            "`allow_secrets: true`",
        ),
        (
            "enabled: true, command: x, forward_headers: [X-API-Key]",
            "forward_headers would hand the client's x-api-key to the tool; take it out, or say `allow_secrets: true`",
        ),
    ],
)
def test_what_cannot_be_asked_or_would_hand_out_secrets_is_an_error(
    configs: Configs, settings: str, problem: str
) -> None:
    assert configs.problems(configs.good + tool(settings)) == [f"21:34: classifier.mcp_category_model: {problem}"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("enabled: true, command: x, transport_type: sse", "transport_type: 'sse' is not one of 'stdio', "),
        ("enabled: true, command: x, timeout_seconds: 0", "timeout_seconds: input should be greater than 0"),
        ("enabled: true, command: x, threshold: 2", "threshold: input should be less than or equal to 1"),
        ("enabled: true, command: x, forward_headers: ['a b']", "forward_headers[0]: string should match pattern"),
        ("enabled: true, url: 'ftp://x', transport_type: http", "url: string should match pattern"),
        ("enabled: true, comand: x", "comand: unknown key; did you mean 'command'?"),
    ],
)
def test_what_is_wrong_stands_at_its_place(configs: Configs, settings: str, problem: str) -> None:
    assert any(problem in one for one in configs.problems(configs.good + tool(settings)))


def test_a_tool_that_no_method_asks_is_a_warning(configs: Configs) -> None:
    text = configs.good + tool("enabled: true, command: x") + "router: {methods: [keyword]}\n"
    said = "classifier.mcp_category_model does nothing: router.methods leaves mcp out"
    assert any(said in one for one in configs.notices(text))
