"""Send the demo's questions through the official OpenAI client and identify the adapter that answered."""

from dataclasses import dataclass
from urllib.parse import unquote

from vllm_lora_router.tools.demo.answers import ADAPTERS, BASE_ANSWER

ADAPTER_BY_ANSWER = {recipe.answer: recipe.name for recipe in ADAPTERS} | {BASE_ANSWER: None}


@dataclass(frozen=True)
class Question:
    """A question and its expected adapter (None: the base model)."""

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
    """The response to a question."""

    question: Question
    text: str
    answering_adapter: str | None  # the adapter trained on this sentence, or None for the base model
    adapter: str  # the `model` of the response
    category: str
    method: str
    reason: str
    confidence: str
    overhead_ms: float

    @property
    def is_correct(self) -> bool:
        """Return whether the expected adapter wrote the text: every adapter has its own sentence."""
        return self.text in ADAPTER_BY_ANSWER and self.answering_adapter == self.question.adapter


def warm_up(url: str, *, api_key: str = "none") -> None:
    """Send a server's first requests, which are often routed more slowly (the reason is not known)."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=api_key)
    for _ in range(5):
        client.chat.completions.create(model="MoM", messages=[{"role": "user", "content": "Hello"}], max_tokens=8)


def ask(url: str, question: Question, *, model: str = "MoM") -> Answer:
    """Send a question to the server at `url` with a standard client; the request names no adapter."""
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
        ADAPTER_BY_ANSWER.get(text),
        completion.model,
        unquote(headers.get("x-vsr-selected-category", "")),
        headers.get("x-lora-router-method", ""),
        headers.get("x-lora-router-reason", ""),
        headers.get("x-vsr-selected-confidence", ""),
        float(headers.get("x-lora-router-overhead-ms", "nan")),
    )
