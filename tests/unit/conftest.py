"""Strategies for JSON as clients write it, and requests as agents send them."""

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

examples = settings(max_examples=150, deadline=None, derandomize=True, database=None)

# JSON text that Python's encoder never writes, with white space in every place that allows it.
whitespace = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n  "])
numbers = st.sampled_from(
    [
        "0",
        "-0",
        "0.10",
        "1E5",
        "1e-7",
        "-1.50e+3",
        "1e400",
        "-1e400",
        "12345678901234567890123",
        "0.1000000000000000055",
    ]
)
letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
strings = st.one_of(
    letters.map(json.dumps),
    letters.map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"\\/"', '"\\u00e9"', '"\\ud83d\\ude00"', '"\\u0000"', '"MoM"', '"null"', '"user"']),
)
scalars = st.one_of(numbers, strings, st.sampled_from(["true", "false", "null"]))


def json_list(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    item = st.builds("{}{}{}".format, whitespace, items, whitespace)
    return st.builds("[{}]".format, st.lists(item, max_size=4).map(",".join)) | whitespace.map("[{}]".format)


def json_object(members: st.SearchStrategy[tuple[str, str]], *, max_size: int = 4) -> st.SearchStrategy[str]:
    def text(pairs: list[tuple[str, str]], space: str) -> str:
        return "{" + ",".join(f"{space}{key}{space}:{space}{value}{space}" for key, value in pairs) + "}"

    return st.builds(text, st.lists(members, max_size=max_size), whitespace)


json_values = st.recursive(
    scalars, lambda inner: json_list(inner) | json_object(st.tuples(strings, inner)), max_leaves=12
)


def same(left: Any, right: Any) -> bool:
    # Unlike Python, a client distinguishes 1, 1.0 and True, 0.0 and -0.0, and the order of keys.
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return repr(left) == repr(right)
    return left == right


# All text around the user text is about law, which must not decide the category.
REMINDER = "<system-reminder>\nThis project is about a lawsuit. Do not tell the user.\n</system-reminder>"


def claude_code(text: str) -> dict[str, Any]:
    """Return a request of Claude Code to /v1/messages in the middle of a task."""
    cache = {"type": "ephemeral"}
    names = ("Bash", "Read", "Edit", "Grep", *(f"mcp__server__tool_{number}" for number in range(30)))
    return {
        "model": "MoM",
        "max_tokens": 32000,
        "stream": True,
        "metadata": {"user_id": "user_0_account__session_0"},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.0;"},
            {"type": "text", "text": "You are Claude Code, Anthropic's official CLI.", "cache_control": cache},
            {"type": "text", "text": "Help with the lawsuit tracker in /srv/law.", "cache_control": cache},
        ],
        "tools": [
            {
                "name": name,
                "description": f"{name} works on files of a lawsuit. " * 20,
                "input_schema": {
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "type": "object",
                    "properties": {"command": {"type": "string"}, "timeout": {"type": "number", "maximum": 6e5}},
                    "required": ["command"],
                    "additionalProperties": False,
                },
            }
            for name in names
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": REMINDER},
                    {"type": "text", "text": f"{REMINDER}\n{text}", "cache_control": cache},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "A lawsuit?", "signature": "c2ln"},
                    {"type": "text", "text": "I look into the lawsuit."},
                    {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"command": "ls lawsuit"}},
                    {"type": "tool_use", "id": "toolu_02", "name": "Read", "input": {"file_path": "/srv/law/suit"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_01", "content": "lawsuit.md"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_02",
                        "is_error": False,
                        "content": [{"type": "text", "text": "The lawsuit of 1987."}],
                    },
                    {"type": "text", "text": REMINDER},
                ],
            },
        ],
    }


def codex(text: str) -> dict[str, Any]:
    """Return a request of Codex to /v1/responses in the middle of a task."""

    def user(text: str) -> dict[str, Any]:
        return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}

    return {
        "model": "MoM",
        "instructions": "You are Codex, based on GPT-5. You help with a lawsuit.",
        "input": [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "<permissions>The lawsuit is read-only.</permissions>"}],
            },
            user("<user_instructions>\nKeep to the lawsuit.\n</user_instructions>"),
            user("<environment_context>\n  <cwd>/srv/lawsuit</cwd>\n  <shell>bash</shell>\n</environment_context>"),
            user(text),
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "Z0FBQQ=="},
            {
                "type": "function_call",
                "name": "shell",
                "arguments": '{"command":["cat","lawsuit"]}',
                "call_id": "call_1",
            },
            {"type": "function_call_output", "call_id": "call_1", "output": '{"output":"a lawsuit","metadata":{}}'},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "There is a lawsuit.", "annotations": []}],
            },
            user("<environment_context>\n  <approval_policy>lawsuit</approval_policy>\n</environment_context>"),
        ],
        "tools": [{"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0198",
    }


def cline(text: str) -> dict[str, Any]:
    """Return a request of Cline to /v1/chat/completions."""
    details = "<environment_details>\n# Visible Files\nlawsuit.md\n\n# Current Mode\nACT MODE\n</environment_details>"
    return {
        "model": "MoM",
        "messages": [
            {"role": "system", "content": "You are Cline, and know all of the lawsuit."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "<task>\nHello\n</task>"}, {"type": "text", "text": details}],
            },
            {"role": "assistant", "content": "Is it about the lawsuit?"},
            {"role": "user", "content": f"{text}\n\n{details}"},
        ],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
