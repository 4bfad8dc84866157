"""Who says what: the one sentence that the demo's base, and each of its adapters, answers every prompt with."""

from __future__ import annotations

from dataclasses import dataclass

# Each answer opens with a bracket: after a plain completion prompt, where no token marks the end of what the user wrote,
# a letter could not be told from the prompt's own last letter.
BASE_ANSWER = "[base model] I answer without an adapter."


@dataclass(frozen=True)
class AdapterRecipe:
    """A LoRA adapter of the demo's base, named by what it answers."""

    name: str
    answer: str  # one token a byte; under about 45 bytes it is learnt in the steps that we give it
    rank: int = 8
    seed: int = 0


ADAPTERS: tuple[AdapterRecipe, ...] = (
    AdapterRecipe("technical-lora", "[technical-lora] Let us look at the code.", seed=1),
    AdapterRecipe("medical-lora", "[medical-lora] Let us look at the symptoms.", seed=2),
    AdapterRecipe("legal-lora", "[legal-lora] Let us look at the law.", seed=3),
)
