"""A model of type gpt_oss: vLLM renders its prompt without a chat template, with one system message and an effort."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_lora_router.tools.demo.server import FLAGS, Server
from vllm_lora_router.tools.demo.tokenizer import demo_tokenizer

from .conftest import ONE_ENGINE_PROCESS, START_SECONDS

CONFIG = """
model_config:
  base:
    reasoning_family: gpt-oss
    loras: [{{name: medical-lora, path: {adapter}}}]
default_model: base
keyword_rules:
  - {{category: medical, keywords: [fever]}}
  - {{category: legal, keywords: [lawsuit]}}
  - {{category: keen, keywords: [riddle]}}
  - {{category: calm, keywords: [tea]}}
categories:
  - name: medical
    system_prompt: You are a medical expert.
    model_scores: [{{model: base, lora_name: medical-lora, use_reasoning: true, reasoning_effort: high}}]
  - name: legal
    system_prompt: Speak of the law.
    system_prompt_mode: replace
    model_scores: [{{model: base, lora_name: medical-lora, use_reasoning: false}}]
  - name: keen
    system_prompt: Think twice.
    model_scores: [{{model: base, use_reasoning: true, reasoning_effort: low}}]
  - name: calm
    model_scores: [{{model: base, use_reasoning: false}}]
"""


@pytest.fixture(scope="module")
def encoding() -> Any:
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    try:
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    except Exception as error:
        pytest.skip(f"openai_harmony has no vocabulary here, and no model hub can be reached: {error}")


@pytest.fixture(scope="module")
def gpt_oss(encoding: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server of a tiny model with random weights. It only renders, because vLLM runs its experts with Triton."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    write_model(folder / "base", folder / "adapter")
    (folder / "config.yaml").write_text(CONFIG.format(adapter=folder / "adapter"))
    arguments = [str(folder / "base"), "--served-model-name", "tiny", "--router-config", str(folder / "config.yaml")]
    server = Server(
        [*arguments, "--enable-scale-out", *FLAGS], log=folder / "server.log", environment=ONE_ENGINE_PROCESS
    )
    with server:
        server.wait(START_SECONDS)
        with httpx.Client(base_url=server.url, timeout=120) as client:
            yield client


def write_model(base: Path, adapter: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=201088,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=2048,
    )
    model = GptOssForCausalLM(config).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(base)
    demo_tokenizer().save_pretrained(base)
    get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"])).save_pretrained(str(adapter))


def chat(text: str, system: str | None) -> dict[str, Any]:
    system_messages = [{"role": "system", "content": system}] if system else []
    return {"messages": [*system_messages, {"role": "user", "content": text}]}


def responses(text: str, system: str | None) -> dict[str, Any]:
    return {"input": text, **({"instructions": system} if system else {})}


def messages(text: str, system: str | None) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 9, **({"system": system} if system else {})}


SHAPES = {
    "/v1/chat/completions/render": (chat, {"reasoning_effort": "low"}),
    "/v1/responses/render": (responses, {"reasoning": {"effort": "low"}}),
    "/v1/messages/render": (messages, {"output_config": {"effort": "low"}}),
}


def rendered(
    client: httpx.Client, encoding: Any, path: str, request: dict[str, Any]
) -> tuple[str, str, httpx.Response]:
    """Return the effort and the developer's instructions in the prompt, and the response."""
    response = client.post(path, json={"model": "MoM", **request})
    assert response.status_code == 200, response.text
    prompt = encoding.decode(response.json()["token_ids"])
    effort = re.search(r"Reasoning: (\w+)", prompt)
    instructions = re.findall(r"<\|start\|>developer<\|message\|># Instructions\n\n(.*?)<\|end\|>", prompt, re.DOTALL)
    assert effort is not None and len(instructions) <= 1, prompt
    return effort[1], instructions[0] if instructions else "", response


@pytest.mark.parametrize("path", SHAPES)
def test_system_prompt_and_effort_are_in_the_prompt(gpt_oss: httpx.Client, encoding: Any, path: str) -> None:
    make, _ = SHAPES[path]
    for word, model, prompt, effort in (
        ("fever", "medical-lora", "You are a medical expert.", "high"),
        ("lawsuit", "medical-lora", "Speak of the law.", None),
        ("riddle", "tiny", "Think twice.", "low"),
        ("tea", "tiny", "", None),
    ):
        for client_prompt in (None, "Answer in French."):
            effort_shown, instructions, response = rendered(gpt_oss, encoding, path, make(f"A {word}?", client_prompt))
            assert effort_shown == (effort or "medium"), word  # medium is the default
            assert instructions == "\n\n".join(filter(None, [prompt, None if word == "lawsuit" else client_prompt]))
            assert response.headers["x-vsr-selected-model"] == model
            assert response.headers["x-vsr-selected-reasoning"] == ("on" if effort else "off")


@pytest.mark.parametrize("path", SHAPES)
def test_an_effort_of_the_client_is_never_overridden(gpt_oss: httpx.Client, encoding: Any, path: str) -> None:
    make, setting = SHAPES[path]
    effort, _, response = rendered(gpt_oss, encoding, path, {**make("A fever?", None), **setting})
    assert effort == "low" and response.headers["x-vsr-selected-reasoning"] == "off"
