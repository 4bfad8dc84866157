"""Common clients and agents, with only the address and the model changed."""

import random
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.tools.demo.server import Server

from .conftest import API_KEY, BASE

ANSWER = {recipe.name: recipe.answer for recipe in ADAPTERS} | {BASE: BASE_ANSWER, "tiny": BASE_ANSWER}
# Questions and the models that fit, in the guide's configuration.
QUESTIONS = [
    ("Explain async/await in JavaScript", "technical-lora"),
    ("What causes high blood pressure?", "medical-lora"),
    ("Can my landlord keep my deposit?", "legal-lora"),
    ("Suggest a name for my cat", BASE),
]
COLD = {"temperature": 0}  # Anthropic's client has no argument for it
MEDICAL = "What causes high blood pressure?"

LOOK_UP = {
    "name": "look_up",
    "description": "Looks a word up.",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}
# An agent has dozens of tools, with descriptions from all categories.
TOPICS = ("contract law", "SQL databases", "stack traces", "GDPR requests", "lawsuits", "Python code", "diabetes")
TOOLS: list[Any] = [
    {"type": "function", "function": {**LOOK_UP, "name": f"tool_{number}", "description": f"Knows {topic}."}}
    for number, topic in enumerate(TOPICS * 6)
]
AGENT_SYSTEM = "You are a coding agent. Write Python, run SQL, read stack traces, obey the contract. " * 20
RESULT = "Traceback (most recent call last): a lawsuit about the contract, SELECT * FROM users"


def user(text: Any) -> Any:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def sync(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0)


@pytest.fixture(scope="module")
def claude(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=API_KEY, max_retries=0)


@pytest.mark.parametrize(("question", "model"), QUESTIONS)
async def test_openai(server: Server, sync: openai.OpenAI, question: str, model: str) -> None:
    messages = [user(question)]
    completion = sync.chat.completions.create(model="MoM", messages=messages, temperature=0)
    assert (completion.model, completion.choices[0].message.content) == (model, ANSWER[model])
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
        completion = await client.chat.completions.create(model="MoM", messages=messages, temperature=0)
        assert (completion.model, completion.choices[0].message.content) == (model, ANSWER[model])
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="MoM", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
            )
        ]
    assert {chunk.model for chunk in chunks} == {model}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER[model]
    assert chunks[-1].usage is not None


@pytest.mark.parametrize(("question", "model"), QUESTIONS)
def test_openai_responses(sync: openai.OpenAI, question: str, model: str) -> None:
    response = sync.responses.create(model="MoM", input=question, temperature=0)
    assert (response.model, response.output_text) == (model, ANSWER[model])
    items: Any = [user([{"type": "input_text", "text": question}])]
    response = sync.responses.create(model="MoM", input=items, instructions="Be brief.", temperature=0)
    assert (response.model, response.output_text) == (model, ANSWER[model])
    with sync.responses.stream(model="MoM", input=question, temperature=0) as stream:
        for _ in stream:
            pass
        response = stream.get_final_response()
    assert (response.model, response.output_text) == (model, ANSWER[model])


@pytest.mark.parametrize(("question", "model"), QUESTIONS)
def test_anthropic(claude: anthropic.Anthropic, question: str, model: str) -> None:
    for content, system in ((question, "Be brief."), ([{"type": "text", "text": question}], anthropic.omit)):
        message = claude.messages.create(
            model="MoM", max_tokens=64, messages=[user(content)], system=system, extra_body=COLD
        )
        assert message.model == model
        assert [block.text for block in message.content if block.type == "text"] == [ANSWER[model]]
    with claude.messages.stream(model="MoM", max_tokens=64, messages=[user(question)], extra_body=COLD) as stream:
        assert "".join(stream.text_stream) == ANSWER[model]
    assert claude.messages.count_tokens(model="MoM", messages=[user(question)]).input_tokens > 10


def test_anthropic_key_is_checked(server: Server) -> None:
    def count(**options: Any) -> int:
        client = anthropic.Anthropic(base_url=server.url, max_retries=0, **options)
        return client.messages.count_tokens(model="MoM", messages=[user(MEDICAL)]).input_tokens

    assert count(api_key=API_KEY) == count(auth_token=API_KEY) > 10
    # The header Authorization takes precedence.
    assert count(api_key="wrong", default_headers={"authorization": f"Bearer {API_KEY}"}) > 10
    with pytest.raises(anthropic.AuthenticationError):
        count(api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError):
        count(api_key=API_KEY, default_headers={"authorization": "Bearer wrong"})
    for path, sent in [("/v1/messages", {}), ("/v1/chat/completions", {"x-api-key": API_KEY})]:
        assert httpx.post(server.url + path, headers=sent, json={}).status_code == 401


@pytest.mark.parametrize("responses_api", [False, True])
@pytest.mark.parametrize(("question", "model"), QUESTIONS)
def test_langchain(server: Server, question: str, model: str, responses_api: bool) -> None:
    chat = ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=SecretStr(API_KEY),
        model="MoM",
        temperature=0,
        max_retries=0,
        use_responses_api=responses_api,
    )
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage(question)])
    assert answer.text == ANSWER[model]
    assert answer.response_metadata["model_name"] == model
    assert "".join(chunk.text for chunk in chat.stream(question)) == ANSWER[model]


@pytest.fixture
async def agent(plugin_server: Server):
    """A client of the server with tool calls."""
    async with httpx.AsyncClient(base_url=plugin_server.url, timeout=120) as client:
        yield client


def test_openai_with_tools(plugin_server: Server) -> None:
    client = openai.OpenAI(base_url=f"{plugin_server.url}/v1", api_key="none", max_retries=0)
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "tool_1", "arguments": "{}"}}
    completion = client.chat.completions.create(
        model="MoM",
        messages=[
            {"role": "system", "content": AGENT_SYSTEM},
            user([{"type": "text", "text": MEDICAL}]),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": RESULT},
        ],
        tools=TOOLS,
        temperature=0,
    )
    assert (completion.model, completion.choices[0].message.content) == ("medical-lora", ANSWER["medical-lora"])
    # The request names a tool, so vLLM constrains the answer to a call of it.
    named: Any = {"type": "function", "function": {"name": "look_up"}}
    completion = client.chat.completions.create(
        model="MoM",
        messages=[user(MEDICAL)],
        tools=[{"type": "function", "function": LOOK_UP}],  # pyright: ignore[reportArgumentType]
        tool_choice=named,
        max_tokens=40,
    )
    assert completion.model == "medical-lora"
    assert [call.function.name for call in completion.choices[0].message.tool_calls or ()] == ["look_up"]  # pyright: ignore[reportAttributeAccessIssue]


def test_langchain_with_tools(plugin_server: Server) -> None:
    chat = ChatOpenAI(base_url=f"{plugin_server.url}/v1", api_key="none", model="MoM", temperature=0, max_retries=0)  # pyright: ignore[reportArgumentType]
    call = {"name": "tool_1", "args": {"word": "x"}, "id": "call_1", "type": "tool_call"}
    answer = chat.bind_tools(TOOLS).invoke(
        [
            SystemMessage(AGENT_SYSTEM),
            HumanMessage(MEDICAL),
            AIMessage("", tool_calls=[call]),
            ToolMessage(RESULT, tool_call_id="call_1"),
        ]
    )
    assert answer.text == ANSWER["medical-lora"]


def test_a_coding_agent_over_the_messages_api(plugin_server: Server) -> None:
    """As Claude Code sends it: system blocks, notes inside the user's message, tool results as user messages."""
    client = anthropic.Anthropic(base_url=plugin_server.url, api_key="none", max_retries=0)
    note = "<system-reminder>\nThe file contract.py changed: a stack trace, SQL, a lawsuit.\n</system-reminder>"
    tools: Any = [
        {"name": f"tool_{number}", "description": f"Knows {topic}.", "input_schema": LOOK_UP["parameters"]}
        for number, topic in enumerate(TOPICS * 6)
    ]
    history: Any = [
        user([{"type": "text", "text": note}, {"type": "text", "text": f"{note}\n{MEDICAL}"}]),
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look it up."},
                {"type": "tool_use", "id": "toolu_1", "name": "tool_1", "input": {"word": "SQL contract"}},
            ],
        },
        user(
            [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": RESULT}]},
                {"type": "text", "text": note},
            ]
        ),
    ]
    system: Any = [
        {"type": "text", "text": "You are a CLI."},
        {"type": "text", "text": AGENT_SYSTEM, "cache_control": {"type": "ephemeral"}},
    ]
    message = client.messages.create(
        model="MoM",
        max_tokens=64,
        system=system,
        messages=history,
        tools=tools,
        extra_body=COLD,
        thinking={"type": "adaptive"},  # pyright: ignore[reportArgumentType]
        metadata={"user_id": "u-1"},
    )
    assert message.model == "medical-lora"
    assert [block.text for block in message.content if block.type == "text"] == [ANSWER["medical-lora"]]


def test_a_coding_agent_over_the_responses_api(plugin_server: Server) -> None:
    """As Codex sends it: the environment as a user message, calls and their results as items."""
    client = openai.OpenAI(base_url=f"{plugin_server.url}/v1", api_key="none", max_retries=0)
    surroundings = "<environment_context>\n<cwd>/contract</cwd>\n<shell>SQL</shell>\n</environment_context>"
    items: Any = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": AGENT_SYSTEM}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": MEDICAL}]},
        {"type": "function_call", "call_id": "call_1", "name": "tool_1", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": RESULT},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": surroundings}]},
    ]
    tools: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    response = client.responses.create(
        model="MoM",
        input=items,
        tools=tools,
        temperature=0,
        store=False,
        include=["reasoning.encrypted_content"],
        reasoning={"summary": "auto"},
        prompt_cache_key="k",
    )
    assert (response.model, response.output_text) == ("medical-lora", ANSWER["medical-lora"])


SEEDS = {
    "/v1/chat/completions": {"messages": [{"role": "system", "content": "Be kind."}, user("What is a fever?")]},
    "/v1/completions": {"prompt": ["What is a fever?"]},
    "/v1/responses": {
        "input": [user([{"type": "input_text", "text": "What is a fever?"}])],
        "instructions": "Be kind.",
    },
    "/v1/messages": {"messages": [user([{"type": "text", "text": "What is a fever?"}])], "system": "Be kind."},
    "/tokenize": {"messages": [user("What is a fever?")], "chat_template_kwargs": {"x": 1}},
}


def mutated(draw: random.Random, content: bytes) -> bytes:
    """Return a body with a few bytes removed, repeated or changed, or with a value replaced."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content))
        kind = draw.randrange(5)
        if kind == 0:
            content = content[:at] + content[at + draw.randint(1, 4) :]
        elif kind == 1:
            content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
        elif kind == 2:
            content = content[:at] + content[at : at + draw.randint(1, 40)] + content[at:]
        elif kind == 3:
            values = [
                b'"user"',
                b"[]",
                b"{}",
                b"null",
                b"7",
                b'"\\ud800"',
                b'"MoM"',
                b"NaN",
                b"1e999",
                b'"system"',
                b'[""]',
            ]
            content = content.replace(draw.choice(values), draw.choice(values))
        else:
            old = draw.choice([b'"What is a fever?"', b'"Be kind."', b'"text"', b'"user"', b"messages", b"content"])
            new = draw.choice([b"5", b"null", b"{}", b"[[]]", b'"\\ud800"', b'"assistant"', b"true", b'"image_url"'])
            content = content.replace(old, new)
        content = content or b"{"
    return content


async def test_mutated_bodies_get_a_500_only_where_vllm_alone_answers_500(plugin_server: Server, full: bool) -> None:
    draw, bodies = random.Random(7), 5000 if full else 1000
    errors = 0
    async with httpx.AsyncClient(base_url=plugin_server.url, timeout=60) as client:
        for number in range(bodies):
            path = draw.choice(list(SEEDS))
            limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
            request = httpx.Request("POST", plugin_server.url, json={"model": "MoM", limit: 4, **SEEDS[path]})
            content = mutated(draw, request.content)
            headers = {"content-type": "application/json"}
            response = await client.post(path, content=content, headers=headers)
            if response.status_code >= 500:
                errors += 1
                plain = content.replace(b'"MoM"', b'"tiny"')
                same = await client.post(path, content=plain, headers=headers)
                assert same.status_code >= 500, (number, path, content, response.text)
        answer = await client.post("/v1/chat/completions", json={"model": "MoM", **SEEDS["/v1/chat/completions"]})
        assert answer.status_code == 200
    print(f"\n{bodies} mutated bodies: {errors} answered by vLLM with a 500")
