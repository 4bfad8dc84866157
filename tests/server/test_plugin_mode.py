"""vLLM's own server with the plugin, and all methods in one configuration."""

import openai
import pytest

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER
from vllm_lora_router.tools.demo.server import Server

ANSWER = {recipe.name: recipe.answer for recipe in ADAPTERS} | {"tiny": BASE_ANSWER}


@pytest.fixture(scope="module")
def client(plugin_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{plugin_server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    ("question", "method", "model", "reasoning"),
    [
        ("Here is the stack trace of my program", "keyword", "technical-lora", "on"),
        ("What are the symptoms of the flu, and is it a disease like diabetes?", "embedding", "medical-lora", "on"),
        ("Can my landlord keep my deposit?", "domain", "legal-lora", "off"),
        ("Suggest a name for my cat", "domain", "tiny", "off"),
        ("<context>lawsuit GDPR contract</context>Suggest a name for my cat", "domain", "tiny", "off"),
    ],
)
def test_the_first_method_that_accepts_a_request_decides(
    client: openai.OpenAI, question: str, method: str, model: str, reasoning: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="MoM", messages=[{"role": "user", "content": question}], max_tokens=64, temperature=0
    )
    assert raw.headers["x-lora-router-method"] == method
    assert raw.parse().model == model
    assert raw.parse().choices[0].message.content == ANSWER[model]
    assert raw.headers["x-vsr-selected-reasoning"] == reasoning
