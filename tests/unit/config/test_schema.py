"""Validators of the schema: valid and invalid settings of an MCP tool."""

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
def test_valid_settings_load(configs: Configs, settings: str) -> None:
    configs.load(configs.good + tool(settings))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("enabled: true", "transport_type is stdio, which needs `command`, the program that starts the tool"),
        ("enabled: true, transport_type: http", "transport_type is http, which needs `url`, the address of the tool"),
        (
            "enabled: true, transport_type: streamable-http",
            "transport_type is streamable-http, which needs `url`, the address of the tool",
        ),
        (
            "enabled: true, command: x, forward_headers: [x-a, Authorization, Cookie]",
            "forward_headers would send the client's credentials (authorization, cookie) to the tool; remove "
            "them, or set `allow_secrets: true`",
        ),
        (
            "enabled: true, command: x, forward_headers: [X-API-Key]",
            "forward_headers would send the client's credentials (x-api-key) to the tool; remove them, or set "
            "`allow_secrets: true`",
        ),
    ],
)
def test_incomplete_connections_and_forwarded_secrets_are_errors(configs: Configs, settings: str, problem: str) -> None:
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
def test_an_invalid_value_is_reported_at_its_place(configs: Configs, settings: str, problem: str) -> None:
    assert any(problem in line for line in configs.problems(configs.good + tool(settings)))


def test_a_tool_outside_router_methods_gets_a_warning(configs: Configs) -> None:
    text = configs.good + tool("enabled: true, command: x") + "router: {methods: [keyword]}\n"
    expected = "classifier.mcp_category_model has no effect: router.methods does not contain mcp"
    assert any(expected in warning for warning in configs.warnings(text))
