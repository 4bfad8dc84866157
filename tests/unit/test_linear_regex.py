"""Regular expressions of users: what is accepted, and that matching never explodes."""

import re

import pytest

from vllm_lora_router.linear_regex import MAX_INSTRUCTIONS, PatternError, compile_linear


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("(", "missing ): ("),
        (r"(a)\1", r"invalid escape sequence: \1; look-around, backreferences"),
        ("(?=a)", r"invalid perl operator: (?="),
        ("(?<!a)b", r"invalid perl operator: (?<"),
        ("a++", "bad repetition operator: ++"),
        ("(a{1000}){1000}", "invalid repetition size: {1000}"),
        (r"\p{L}{1,500}", "pattern too large"),
        (r"\p{L}{1,20}", f"instructions, more than {MAX_INSTRUCTIONS:,}"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused_with_the_cause(
    pattern: str, cause: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PatternError, match=re.escape(cause)) as error:
        compile_linear(pattern)
    assert repr(pattern) in str(error.value)
    assert capfd.readouterr().err == ""  # RE2 logs nothing


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("(?s)<context>.*?</context>", "<context>a\nb</context> c <context></context>", 2),
        ("(?i)STRASSE", "strasse", 1),
        (r"(?m)^-- .*$", "a\n-- b\n-- c", 2),
        (r"\w", "ä", 0),  # ASCII only
        (r"\p{L}", "ä", 1),
        ("[一-鿿]+", "高血压", 1),
        (r"(?P<quote>['\"])x", "'x", 1),
        (r"\x{1F600}", "\N{GRINNING FACE}", 1),
    ],
)
def test_patterns_match_as_documented(pattern: str, text: str, matches: int) -> None:
    assert len(list(compile_linear(pattern).finditer(text.encode()))) == matches
