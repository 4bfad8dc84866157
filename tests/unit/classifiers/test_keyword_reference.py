"""Keyword rules find the same keywords as one regular expression for each keyword on the whole text."""

import unicodedata

import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.classifiers import keyword_text
from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.config.schema import KeywordRule

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
LETTER = rf"[^\W{UNSPACED}\p{{M}}]"
CHARACTERS = (
    "aAbB1_ \n\t\u3000.+#!?ßé\u0301\u0316\u0345İıςΣ高血ガｶﾞのアไม\u0e31ก한\u1112\u1161\u11abﷺ①ﬁ\u200b∈\u0338𠮷हि😀"
    "\u00ad'\u2019\u2010ب\u064e\u0640א\u05b7"
)
REMOVED = dict.fromkeys(map(ord, "\u200b\u00ad"))
ASCII_FORMS = str.maketrans("\u2019\u2010", "'-")
POINTS = dict.fromkeys(map(ord, "\u064e\u0640\u05b7"))


def is_keyword(text: str) -> bool:
    """Return whether a keyword is not blank and does not begin with a mark, which would belong to another character."""
    normalized = normalize(text).strip()
    return bool(normalized) and unicodedata.category(normalized[0])[0] != "M"


def normalize(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.translate(REMOVED).translate(ASCII_FORMS))
    return text.translate(POINTS)


texts = st.text(CHARACTERS, max_size=30)
keywords = st.text(CHARACTERS, min_size=1, max_size=6).filter(is_keyword)
rules = st.builds(
    KeywordRule,
    category=st.just("a"),
    operator=st.sampled_from(["OR", "AND", "NOR"]),
    keywords=st.lists(keywords, min_size=1, max_size=4),
    case_sensitive=st.booleans(),
)


def normalized(text: str, rule: KeywordRule) -> str:
    text = normalize(text)
    return text if rule.case_sensitive else text.casefold().replace("i\u0307", "i")


def occurs(keyword: str, text: str, rule: KeywordRule) -> bool:
    keyword, text = normalized(keyword, rule), normalized(text, rule)
    if regex.search(rf"(?!\p{{M}})[{UNSPACED}]", keyword) or not regex.search(LETTER, keyword):
        return bool(regex.search(rf"{regex.escape(keyword)}(?!\p{{M}})", text))
    words = keyword.split()
    left = rf"(?<!{LETTER}\p{{M}}*)" if regex.match(LETTER, words[0]) else ""
    right = rf"(?!{LETTER})" if regex.search(rf"{LETTER}\p{{M}}*$", words[-1]) else ""
    phrase = r"\s+".join(map(regex.escape, words))
    return bool(regex.search(rf"{left}{phrase}{right}(?!\p{{M}})", text))


def expected(rules: list[KeywordRule], text: str) -> tuple[int, list[str]] | None:
    """Return the position of the first rule that matches, and its keywords that occur."""
    for position, rule in enumerate(rules if normalize(text).strip() else ()):
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
