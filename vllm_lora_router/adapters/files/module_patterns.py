r"""Patterns of module names: the keys of `rank_pattern` and `alpha_pattern` in an adapter_config.json.

PEFT and vLLM match each key with each module's name as the regular expression `(.*\.)?(KEY)$`. The first key that
matches gives the value. vLLM does this between two steps of the engine and with a backtracking matcher: `(a|aa)+c`
takes seven seconds for a name of 38 letters, and no stream advances meanwhile. Therefore a pattern is refused unless
its time is bounded there, although this process matches it with RE2:

- Repetitions follow a single character or class, not a group: `layers\.\d+\..*`.
- Groups contain only alternatives: `(q|k)_proj`. There are no look-arounds and no backreferences.
- The number of attempts of a backtracking matcher with the adapter's own names is limited.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Any

from vllm_lora_router.adapters.files.untrusted_file import short_repr
from vllm_lora_router.linear_regex import PatternError, compile_linear

MAX_PATTERNS = 500  # the `regex` module, which vLLM uses, caches this many and compiles others at each comparison
MAX_PATTERN_LENGTH = 256  # characters

# An attempt takes at most 10 ns, so an adapter delays the engine by a second at worst, and by milliseconds as a rule.
MAX_ATTEMPTS = 100_000_000
ATTEMPTS_PER_COMPARISON = 300  # the fixed cost of one comparison, about 3 us

_TOKEN = re.compile(
    r"(?P<digit>\\d|\[[0-9-]+\])"
    r"|(?P<character>[\w:.-]|\\[w.-]|\[\^?[\w:.-]+\])"
    r"|(?P<repeat>[*+?]|\{(?P<least>\d{1,3})(?P<range>,(?P<most>\d{0,3}))?\})"
    r"|(?P<open>\((?:\?:)?)"
    r"|(?P<alternative>\|)"
    r"|(?P<close>\))"
    r"|(?P<anchor>[\^$])",
    re.ASCII,
)


@dataclass(frozen=True)
class ModulePatterns:
    """Values by pattern, in the order in which the patterns are compared."""

    values: Mapping[str, float]

    def value_of(self, module: str) -> float | None:
        """Return the value of the first pattern that matches the end of `module`; None if there is none."""
        # PEFT stores the LoRA of an expert layer's two parameters under these names, but matches the parameters' names.
        if module.endswith(".experts.base_layer"):
            module = module.removesuffix(".base_layer") + ".gate_up_proj"
        elif module.endswith(".experts"):
            module += ".down_proj"
        return next((value for compiled, value in self._compiled if compiled.fullmatch(module)), None)

    def attempts(self, modules: Collection[str]) -> int:
        """Return the largest number of attempts of a backtracking matcher that compares all patterns and modules."""
        longest = max(map(len, modules), default=0)
        longest_number = max((len(number) for module in modules for number in re.findall(r"\d+", module)), default=0)
        per_module = sum(
            ATTEMPTS_PER_COMPARISON + _attempts(pattern, longest, longest_number) for pattern in self.values
        )
        return per_module * len(modules)

    @cached_property
    def _compiled(self) -> list[tuple[Any, float]]:
        return [(_compile(pattern), value) for pattern, value in self.values.items()]


def pattern_problem(pattern: str) -> str | None:
    """Return why a pattern is refused, whatever the names are; None if it is valid."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        return f"{short_repr(pattern)} has more than {MAX_PATTERN_LENGTH} characters; write module names"
    position, repeatable = 0, False
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or (token["repeat"] and not repeatable):
            return (
                f"{short_repr(pattern)} is not supported from character {position + 1} on: vLLM could need hours to "
                "match such patterns; write module names, with '.*', '\\d+', '[0-9]' and '(q|k)' at most"
            )
        position, repeatable = token.end(), bool(token["digit"] or token["character"])
    try:
        compile_linear(pattern)  # alone, so that its parentheses are balanced
        _compile(pattern)
    except PatternError as error:
        return str(error)
    return None


def _compile(pattern: str) -> Any:
    return compile_linear(rf"(?:.*\.)?(?:{pattern})")


def _attempts(pattern: str, longest: int, longest_number: int) -> int:
    """Return how many ways there are, at most, to match a beginning of a name.

    Args:
        longest: length of the longest name.
        longest_number: length of the longest run of digits in a name.
    """
    repetitions = 1  # the prefix `(.*\.)?`
    alternatives, product = [0], [1]  # of the open groups, the outermost first
    is_digit = False
    for token in _TOKEN.finditer(pattern):
        if token["open"]:
            alternatives.append(0)
            product.append(1)
        elif token["alternative"]:
            alternatives[-1] += product[-1]
            product[-1] = 1
        elif token["close"]:
            group = alternatives.pop() + product.pop()
            product[-1] *= group
        elif token["repeat"]:
            is_unbounded = token[0] in "*+" or (token["range"] and not token["most"])
            if not is_unbounded:
                least, most = (0, 1) if token[0] == "?" else (int(token["least"]), int(token["most"] or token["least"]))
                product[-1] *= max(1, most - least + 1)
            elif is_digit:
                product[-1] *= longest_number + 1
            else:
                repetitions += 1
        is_digit = bool(token["digit"])
    # The ends of the repetitions are in order, so this is a number of combinations with repetition.
    return (alternatives[0] + product[0]) * comb(longest + repetitions, repetitions)
