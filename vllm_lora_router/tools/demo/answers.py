"""Who says what: the one sentence that the demo's base, and each of its adapters, answers every prompt with."""

from dataclasses import dataclass

# Each word is a token of the demo's tokenizer, and none stands in two sentences or twice in one: the next word follows
# from the last one alone, whatever the prompt was. That is learnt in seconds, and holds in any data type.
BASE_WORDS = ("[base]", " No", " adapter", " answers", " here.")
# What adapters beyond the demo's own may say, in any order.
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
    """A LoRA adapter of the demo's base, named by what it answers."""

    name: str
    words: tuple[str, ...]  # of the demo's own, or of SPARE_WORDS; none twice
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
