"""The demo's questions, asked through the official OpenAI client, and whose voice answered each."""

from dataclasses import dataclass
from urllib.parse import unquote

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER

VOICES = {recipe.answer: recipe.name for recipe in ADAPTERS} | {BASE_ANSWER: None}


@dataclass(frozen=True)
class Question:
    """A question, and the adapter that a person would choose for it; None is the base."""

    text: str
    adapter: str | None


QUESTIONS = (
    Question("Explain async/await in JavaScript", "technical-lora"),
    Question("What causes high blood pressure?", "medical-lora"),
    Question("Can my landlord keep my deposit?", "legal-lora"),
    Question("Suggest a name for my cat", None),
    Question("Why does my Python script run out of memory?", "technical-lora"),
    Question("Is it safe to take ibuprofen every day?", "medical-lora"),
    Question("What happens if I break a contract?", "legal-lora"),
    Question("How does a hash table handle collisions?", "technical-lora"),
    Question("How long does the flu last?", "medical-lora"),
    Question("What should I cook tonight?", None),
)


@dataclass(frozen=True)
class Answer:
    """What came back for a question."""

    question: Question
    text: str
    voice: str | None  # the adapter whose sentence it is; None is the base's
    adapter: str  # what the response says answered
    category: str
    method: str
    reason: str
    confidence: str
    overhead_ms: float

    @property
    def right(self) -> bool:
        """The answer itself is the proof: each adapter was taught one sentence, and so was the base."""
        return self.text in VOICES and self.voice == self.question.adapter


def greet(url: str, *, api_key: str = "none") -> None:
    """Sends a server's first requests: the very first was often routed slower than the rest; why is not known yet."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=api_key)
    for _ in range(5):
        client.chat.completions.create(model="MoM", messages=[{"role": "user", "content": "Hello"}], max_tokens=8)


def ask(url: str, question: Question, *, model: str = "MoM") -> Answer:
    """Asks a server at `url` with an ordinary client; nothing in the request names an adapter."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    response = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": question.text}], max_tokens=64, temperature=0
    )
    completion, headers = response.parse(), response.headers
    text = completion.choices[0].message.content or ""
    return Answer(
        question,
        text,
        VOICES.get(text),
        completion.model,
        unquote(headers.get("x-vsr-selected-category", "")),
        headers.get("x-lora-router-method", ""),
        headers.get("x-lora-router-reason", ""),
        headers.get("x-vsr-selected-confidence", ""),
        float(headers.get("x-lora-router-overhead-ms", "nan")),
    )
