"""The sentence with which the demo's base model and each of its adapters answers every prompt."""

from dataclasses import dataclass

# Each word is one token of the demo's tokenizer and occurs once in one sentence. The next word therefore depends only
# on the previous word and not on the prompt, which trains in seconds and holds in every data type.
BASE_WORDS = ("[base]", " No", " adapter", " answers", " here.")
# Words for further adapters, in any order.
SPARE_WORDS = tuple(
    f" {word}"
    for word in (
        *("alfa", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima"),
        *("mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey"),
        *("xray", "yankee", "zulu"),
    )
)


@dataclass(frozen=True)
class AdapterRecipe:
    """A LoRA adapter of the demo's base model and its answer."""

    name: str
    words: tuple[str, ...]  # from this module, each at most once
    rank: int = 8
    seed: int = 0

    @property
    def answer(self) -> str:
        return "".join(self.words)


ADAPTERS = (
    AdapterRecipe("technical-lora", ("[technical-lora]", " Let", " me", " read", " your", " code."), seed=1),
    AdapterRecipe("medical-lora", ("[medical-lora]", " Tell", " us", " of", " the", " symptoms."), seed=2),
    AdapterRecipe("legal-lora", ("[legal-lora]", " First", " show", " which", " law", " applies."), seed=3),
)
BASE_ANSWER = "".join(BASE_WORDS)
WORDS = (*BASE_WORDS, *(word for recipe in ADAPTERS for word in recipe.words), *SPARE_WORDS)
