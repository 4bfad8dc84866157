"""Keyword rules find the same keywords as one regular expression for each keyword on the whole text."""

import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.classifiers import keyword_text
from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.config.schema import KeywordRule

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
LETTER = rf"[^\W{UNSPACED}]"
CHARACTERS = (
    "aAbB1_ \n\t\u3000.+#!?ßé\u0301\u0316\u0345İıςΣ高血ガｶﾞのアไม\u0e31ก한\u1112\u1161\u11abﷺ①ﬁ\u200b∈\u0338𠮷हि😀"
)

texts = st.text(CHARACTERS, max_size=30)
keywords = st.text(CHARACTERS, min_size=1, max_size=6).filter(lambda text: not set(text) <= set(" \n\t\u3000\u200b"))
rules = st.builds(
    KeywordRule,
    category=st.just("a"),
    operator=st.sampled_from(["OR", "AND", "NOR"]),
    keywords=st.lists(keywords, min_size=1, max_size=4),
    case_sensitive=st.booleans(),
)


def normalized(text: str, rule: KeywordRule) -> str:
    text = unicodedata.normalize("NFKC", text)
    return text if rule.case_sensitive else text.casefold()


def occurs(keyword: str, text: str, rule: KeywordRule) -> bool:
    keyword, text = normalized(keyword, rule), normalized(text, rule)
    if re.search(f"[{UNSPACED}]", keyword) or not re.search(LETTER, keyword):
        return keyword in text
    words = keyword.split()
    left = rf"(?<!{LETTER})" if re.match(LETTER, words[0]) else ""
    right = rf"(?!{LETTER})" if re.match(LETTER, words[-1][-1]) else ""
    return bool(re.search(left + r"\s+".join(map(re.escape, words)) + right, text))


def expected(rules: list[KeywordRule], text: str) -> tuple[int, list[str]] | None:
    """Return the position of the first rule that matches, and its keywords that occur."""
    for position, rule in enumerate(rules if text.strip() else ()):
        distinct = list(dict.fromkeys(rule.keywords))
        found = [keyword for keyword in distinct if occurs(keyword, text, rule)]
        if {"OR": bool(found), "AND": found == distinct, "NOR": not found}[rule.operator]:
            return position, found
    return None


@settings(max_examples=300, deadline=None)
@given(st.lists(rules, min_size=1, max_size=4), st.lists(st.one_of(texts, keywords), max_size=6), st.data())
def test_rules_match_as_their_regular_expressions_do(
    rules: list[KeywordRule], parts: list[str], data: st.DataObject
) -> None:
    configured = [keyword for rule in rules for keyword in rule.keywords]
    parts += data.draw(st.lists(st.sampled_from(configured), max_size=4))
    text = "".join(data.draw(st.permutations(parts)))
    result = KeywordClassifier(list(enumerate(rules))).match(text)
    evidence = (result.evidence["rule"], result.evidence["keywords"]) if result.accepted else None
    assert evidence == expected(rules, text)


@settings(max_examples=100, deadline=None)
@given(st.lists(keywords, min_size=1, max_size=3), st.lists(texts, max_size=40))
def test_slices_do_not_change_the_result(configured: list[str], parts: list[str]) -> None:
    """The text is longer than many slices, and every kind of boundary occurs."""
    rule, text = KeywordRule(category="a", keywords=configured), "".join([*parts, *configured, *parts])
    length = keyword_text._NON_ASCII_SLICE_CHARACTERS, keyword_text.SLICE_CHARACTERS
    keyword_text._NON_ASCII_SLICE_CHARACTERS = keyword_text.SLICE_CHARACTERS = 70
    try:
        result = KeywordClassifier([(0, rule)]).match(text)
    finally:
        keyword_text._NON_ASCII_SLICE_CHARACTERS, keyword_text.SLICE_CHARACTERS = length
    assert result.evidence.get("keywords", []) == [
        keyword for keyword in dict.fromkeys(configured) if occurs(keyword, text, rule)
    ]
