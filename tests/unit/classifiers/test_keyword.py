"""Keyword rules: the texts that they match."""

from typing import Any

import pytest
from pydantic import ValidationError

from vllm_lora_router.classifiers import keyword as keyword_module
from vllm_lora_router.classifiers.keyword import MAX_EVIDENCE_KEYWORDS, KeywordClassifier
from vllm_lora_router.config.schema import KeywordRule
from vllm_lora_router.types import Classification, Query


def classifier(*rules: dict[str, Any]) -> KeywordClassifier:
    """Return a classifier with these rules, for the categories r0, r1, ... unless a rule names its category."""
    return KeywordClassifier(
        [(place, KeywordRule(**{"category": f"r{place}", **rule})) for place, rule in enumerate(rules)]
    )


def matches(keyword: str, text: str, **rule: Any) -> bool:
    return classifier({"keywords": [keyword], **rule}).match(text).accepted


def test_or_matches_any_keyword_and_and_matches_all_keywords() -> None:
    either = classifier({"operator": "OR", "keywords": ["fever", "cough"]})
    both = classifier({"operator": "AND", "keywords": ["fever", "cough"]})
    assert [either.match(text).accepted for text in ("a fever", "cough and fever", "rash")] == [True, True, False]
    assert [both.match(text).accepted for text in ("a fever", "cough and fever", "rash")] == [False, True, False]


def test_nor_matches_texts_without_any_keyword() -> None:
    neither = classifier({"operator": "NOR", "keywords": ["fever", "cough"]})
    assert [neither.match(text).accepted for text in ("a fever", "cough and fever", "rash")] == [False, False, True]


def test_and_with_duplicate_keywords_matches() -> None:
    assert classifier({"operator": "AND", "keywords": ["SQL", "sql", "SQL"]}).match("my sql").accepted
    assert (
        not classifier({"operator": "AND", "keywords": ["SQL", "sql"], "case_sensitive": True}).match("my sql").accepted
    )


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000", "\ufeff\u200b\u00ad", "\u200b" * 5000])
def test_an_empty_text_matches_no_rule(text: str) -> None:
    rules = classifier({"operator": "NOR", "keywords": ["fever"]}, {"keywords": ["fever"]})
    assert rules.match(text) == Classification(None, 0.0, {}, "rule", 1.0, False)


def test_the_first_matching_rule_wins() -> None:
    rules = classifier({"keywords": ["law"]}, {"keywords": ["fever"]}, {"operator": "NOR", "keywords": ["sql"]})
    assert rules.match("a law against fever").category == "r0"
    assert rules.match("a fever").category == "r1"
    assert rules.match("hello").category == "r2"
    assert rules.match("sql").category is None


def test_the_evidence_names_the_rule_and_its_keywords_as_configured() -> None:
    rule = {"keywords": ["Blood  Pressure", "Fever", "STRASSE", "cough"], "category": "medical"}
    result = KeywordClassifier([(7, KeywordRule(**rule))]).match("COUGH in the Straße, and blood\npressure")
    assert (result.category, result.score, result.scale, result.threshold) == ("medical", 1.0, "rule", 1.0)
    assert result.evidence == {"rule": 7, "operator": "OR", "keywords": ["Blood  Pressure", "STRASSE", "cough"]}


def test_the_evidence_lists_keywords_in_the_configured_order() -> None:
    keywords = ["sleep", "fever", "rash", "cough", "blood pressure", "高血压", "dose", "pulse", "vein"]
    assert classifier({"keywords": keywords}).match(" ".join(reversed(keywords))).evidence["keywords"] == keywords


def test_case_matters_only_for_case_sensitive_rules() -> None:
    assert matches("GDPR", "the gdpr")
    assert not matches("GDPR", "the gdpr", case_sensitive=True)
    assert matches("GDPR", "the GDPR", case_sensitive=True)
    assert matches("ΣΊΣΥΦΟΣ", "σίσυφος")
    assert matches("STRASSE", "eine Straße")


def test_case_sensitive_and_insensitive_rules_work_together() -> None:
    rules = classifier({"keywords": ["IT"], "case_sensitive": True}, {"keywords": ["it"]})
    assert rules.match("our IT").category == "r0"
    assert rules.match("take it").category == "r1"


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("law", "flawless"),
        ("law", "lawn"),
        ("law", "by_law"),
        ("law", "law2"),
        ("recht", "Rechtsanwältin"),
        ("пол", "полка"),
        ("über", "übermut"),
        ("größe", "vergrößern"),
    ],
)
def test_a_keyword_inside_another_word_does_not_match(keyword: str, text: str) -> None:
    assert not matches(keyword, text)


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("law", "Law, and order"),
        ("law", "(law)"),
        ("law", "EU-law"),
        ("law", "law's"),
        ("größe", "Welche GRÖSSE? Größe!"),
        ("пол", "мокрый пол."),
        ("हिन्दी", "यह हिन्दी है"),
        ("2024", "in 2024:"),
    ],
)
def test_a_keyword_matches_as_a_whole_word(keyword: str, text: str) -> None:
    assert matches(keyword, text)


@pytest.mark.parametrize(
    ("keyword", "text", "expected"),
    [
        ("C++", "I write C++.", True),
        ("C++", "c++11 is old", True),
        ("C++", "objc++", False),
        ("C++", "C + +", False),
        (".NET", "ASP.NET", True),
        (".NET", "a .network", False),
        ("C#", "in c#, not F#", True),
        ("async/await", "use async/await here", True),
        ("async/await", "async / await", False),
        ("node.js", "nodexjs", False),
        ("?", "why?", True),
        ("?", "why", False),
    ],
)
def test_a_keyword_with_punctuation_is_matched_literally(keyword: str, text: str, expected: bool) -> None:
    assert matches(keyword, text) is expected


@pytest.mark.parametrize("text", ["blood pressure", "Blood\npressure", "blood \t\r\n  pressure", "blood\u00a0pressure"])
def test_a_phrase_matches_across_line_breaks(text: str) -> None:
    assert matches("blood pressure", f"high {text}?")
    assert not matches("blood pressure", f"high {text}s")
    assert not matches("blood pressure", "bloodpressure, blood-pressure, pressure blood")


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("高血压", "什么会引起高血压？"),
        ("血压", "什么会引起高血压？"),
        ("カタカナ", "これはカタカナです"),
        ("ความดัน", "โรคความดันโลหิตสูง"),
        ("AI技术", "关于AI技术的问题"),
        ("𠮷野", "𠮷野家"),
    ],
)
def test_a_keyword_in_a_script_without_spaces_matches_anywhere(keyword: str, text: str) -> None:
    assert matches(keyword, text)
    assert not matches(keyword, "What causes high blood pressure?")


def test_a_latin_word_in_chinese_text_has_word_boundaries() -> None:
    assert matches("Python", "我用Python写代码")
    assert not matches("Python", "我用Pythonic写代码")
    assert matches("stack trace", "这个stack trace是什么")


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("fever", "ｆｅｖｅｒ"),
        ("ｆｅｖｅｒ", "fever"),
        ("café", "cafe\u0301"),
        ("ﬁle", "file"),
        ("ガン", "ｶﾞﾝ"),
        ("1", "①"),
    ],
)
def test_unicode_variants_of_the_same_letters_match(keyword: str, text: str) -> None:
    assert matches(keyword, text)


def test_a_text_with_a_lone_surrogate_is_matched() -> None:
    assert matches("fever", "my \ud83d fever")


async def test_queries_are_classified_in_order() -> None:
    rules = classifier({"keywords": ["law"]}, {"keywords": ["fever"]})
    texts = ["a fever", "nothing", "the law", "x " * 15_000 + "fever"]
    classifications = await rules.classify([Query(text) for text in texts])
    assert [classification.category for classification in classifications] == ["r1", None, "r0", "r1"]


def test_the_fingerprint_depends_on_the_rules_and_their_order() -> None:
    law, fever = {"keywords": ["law"], "category": "a"}, {"keywords": ["fever"], "category": "b"}
    variants = [classifier(law, fever), classifier(fever, law), classifier(law), classifier({**law, "operator": "AND"})]
    assert len({variant.fingerprint for variant in variants}) == 4
    assert classifier(law).fingerprint == classifier(law).fingerprint


def test_the_fingerprint_depends_on_the_version_of_the_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached and recorded classifications of another version are not mistaken for those of this one."""
    before = classifier({"keywords": ["law"]}).fingerprint
    monkeypatch.setattr(keyword_module, "MATCHING_VERSION", keyword_module.MATCHING_VERSION + 1)
    assert classifier({"keywords": ["law"]}).fingerprint != before


def test_the_first_of_many_rules_with_the_same_keywords_wins() -> None:
    rules = classifier(
        {"operator": "NOR", "keywords": ["fever", "law"]},
        {"operator": "AND", "keywords": ["fever", "law"]},
        {"operator": "AND", "keywords": ["fever", "cough"]},
        {"operator": "NOR", "keywords": ["fever"]},
        {"keywords": ["law", "fever"]},
    )
    texts = ["sql", "law and fever", "fever, cough", "law", "fever"]
    assert [rules.match(text).category for text in texts] == ["r0", "r1", "r2", "r3", "r4"]


def test_the_evidence_of_thousands_of_keywords_is_short() -> None:
    keywords = [f"order number {place}" for place in range(3000)]
    result = classifier({"keywords": keywords}, {"keywords": keywords}).match(". ".join(reversed(keywords)))
    assert result.evidence == {
        "rule": 0,
        "operator": "OR",
        "keywords": keywords[:MAX_EVIDENCE_KEYWORDS],
        "more_keywords": 3000 - MAX_EVIDENCE_KEYWORDS,
    }


BLANK = " ", "  ", "\t\n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\x00", "\u3164", "\u2800", "\u00ad\u2065", "\ufe0f"
MARKS_WITHOUT_LETTERS = "\u0301", "\u064b", "\ufe70", "\u0640", "\ufcf2"


@pytest.mark.parametrize("keyword", BLANK + MARKS_WITHOUT_LETTERS)
def test_a_blank_keyword_is_refused(keyword: str) -> None:
    with pytest.raises(ValidationError, match="is blank; remove it, or write the word or phrase"):
        KeywordRule(category="a", keywords=["law", keyword])
