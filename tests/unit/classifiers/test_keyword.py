"""Keyword rules: which texts they match, and how fast."""

import asyncio
import time
from typing import Any

import pytest

from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.config.schema import KeywordRule
from vllm_lora_router.types import Classification, Query


def classifier(*rules: dict[str, Any]) -> KeywordClassifier:
    """Rules for the categories r0, r1, ... unless they name their own."""
    return KeywordClassifier(
        [(place, KeywordRule(**{"category": f"r{place}", **rule})) for place, rule in enumerate(rules)]
    )


def matches(keyword: str, text: str, **rule: Any) -> bool:
    return classifier({"keywords": [keyword], **rule}).match(text).accepted


def test_or_needs_one_keyword_and_and_needs_all() -> None:
    either = classifier({"operator": "OR", "keywords": ["fever", "cough"]})
    both = classifier({"operator": "AND", "keywords": ["fever", "cough"]})
    assert [either.match(text).accepted for text in ("a fever", "cough and fever", "rash")] == [True, True, False]
    assert [both.match(text).accepted for text in ("a fever", "cough and fever", "rash")] == [False, True, False]


def test_nor_needs_a_text_with_none_of_them() -> None:
    neither = classifier({"operator": "NOR", "keywords": ["fever", "cough"]})
    assert [neither.match(text).accepted for text in ("a fever", "cough and fever", "rash")] == [False, False, True]


def test_and_takes_keywords_that_differ_in_case_or_stand_twice_as_they_are() -> None:
    assert classifier({"operator": "AND", "keywords": ["SQL", "sql", "SQL"]}).match("my sql").accepted
    assert (
        not classifier({"operator": "AND", "keywords": ["SQL", "sql"], "case_sensitive": True}).match("my sql").accepted
    )


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_an_empty_text_matches_nothing_not_even_nor(text: str) -> None:
    rules = classifier({"operator": "NOR", "keywords": ["fever"]}, {"keywords": ["fever"]})
    assert rules.match(text) == Classification(None, 0.0, {}, "rule", 1.0, False)


def test_the_first_rule_in_list_order_wins() -> None:
    rules = classifier({"keywords": ["law"]}, {"keywords": ["fever"]}, {"operator": "NOR", "keywords": ["sql"]})
    assert rules.match("a law against fever").category == "r0"
    assert rules.match("a fever").category == "r1"
    assert rules.match("hello").category == "r2"
    assert rules.match("sql").category is None


def test_the_evidence_names_the_rule_and_its_keywords_as_the_file_writes_them() -> None:
    rule = {"keywords": ["Blood  Pressure", "Fever", "STRASSE", "cough"], "category": "medical"}
    found = KeywordClassifier([(7, KeywordRule(**rule))]).match("COUGH in the Straße, and blood\npressure")
    assert (found.category, found.score, found.scale, found.threshold) == ("medical", 1.0, "rule", 1.0)
    assert found.evidence == {"rule": 7, "operator": "OR", "keywords": ["Blood  Pressure", "STRASSE", "cough"]}


def test_the_keywords_of_the_evidence_stand_in_the_order_of_the_file() -> None:
    words = ["sleep", "fever", "rash", "cough", "blood pressure", "高血压", "dose", "pulse", "vein"]
    assert classifier({"keywords": words}).match(" ".join(reversed(words))).evidence["keywords"] == words


def test_case_counts_only_where_the_rule_says_so() -> None:
    assert matches("GDPR", "the gdpr")
    assert not matches("GDPR", "the gdpr", case_sensitive=True)
    assert matches("GDPR", "the GDPR", case_sensitive=True)
    assert matches("ΣΊΣΥΦΟΣ", "σίσυφος")
    assert matches("STRASSE", "eine Straße")


def test_rules_of_both_kinds_stand_beside_each_other() -> None:
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
def test_a_keyword_matches_as_a_whole_word_whatever_stands_beside_it(keyword: str, text: str) -> None:
    assert matches(keyword, text)


@pytest.mark.parametrize(
    ("keyword", "text", "found"),
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
def test_a_keyword_with_signs_is_taken_literally(keyword: str, text: str, found: bool) -> None:
    assert matches(keyword, text) is found


@pytest.mark.parametrize("text", ["blood pressure", "Blood\npressure", "blood \t\r\n  pressure", "blood\u00a0pressure"])
def test_a_phrase_may_be_broken_over_lines(text: str) -> None:
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
def test_a_keyword_of_a_script_without_spaces_matches_anywhere(keyword: str, text: str) -> None:
    assert matches(keyword, text)
    assert not matches(keyword, "What causes high blood pressure?")


def test_a_latin_word_inside_chinese_text_is_a_word() -> None:
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
def test_two_spellings_of_the_same_letters_match(keyword: str, text: str) -> None:
    assert matches(keyword, text)


def test_a_text_with_half_an_emoji_is_matched() -> None:
    assert matches("fever", "my \ud83d fever")


async def test_each_query_gets_its_own_answer_in_order() -> None:
    rules = classifier({"keywords": ["law"]}, {"keywords": ["fever"]})
    texts = ["a fever", "nothing", "the law", "x " * 15_000 + "fever"]
    found = await rules.classify([Query(text) for text in texts])
    assert [one.category for one in found] == ["r1", None, "r0", "r1"]


def test_the_fingerprint_changes_with_the_rules_and_their_order() -> None:
    law, fever = {"keywords": ["law"], "category": "a"}, {"keywords": ["fever"], "category": "b"}
    prints = [classifier(law, fever), classifier(fever, law), classifier(law), classifier({**law, "operator": "AND"})]
    assert len({one.fingerprint for one in prints}) == 4
    assert classifier(law).fingerprint == classifier(law).fingerprint


def many(count: int) -> KeywordClassifier:
    words = (
        {"keywords": [f"word{place}", f"long phrase {place}", f"词{place}语", f"x{place}++"]} for place in range(count)
    )
    return classifier(*words)


async def longest_pause(work: Any) -> float:
    """The longest time in seconds that the event loop did not come around while it waited for `work`."""
    task, pause, before = asyncio.ensure_future(work), 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        pause, before = max(pause, now - before), now
    await task
    return pause


@pytest.mark.alone
@pytest.mark.parametrize("piece", ["some words of a phrase, ", "Größe und Länge, ", "高血压的原因 and "])
async def test_a_very_long_text_does_not_hold_the_event_loop(piece: str) -> None:
    rules, text = many(50), piece * (150_000 // len(piece)) + "word7"
    pauses = []
    for _ in range(5):  # the shortest of five: the machine has other things to do as well
        pauses.append(await longest_pause(rules.classify([Query(text)])))
        if pauses[-1] < 0.05:
            break
    assert min(pauses) < 0.05
    assert rules.match(text).category == "r7"


def seconds(rules: KeywordClassifier, text: str) -> float:
    def once() -> float:
        began = time.perf_counter()
        rules.match(text)
        return time.perf_counter() - began

    return min(once() for _ in range(7))


@pytest.mark.alone
def test_the_time_does_not_grow_with_the_number_of_rules() -> None:
    def only_words(count: int) -> KeywordClassifier:
        return classifier(*({"keywords": [f"word{place}", f"long phrase {place}"]} for place in range(count)))

    text = "Some ordinary words of a long question about nothing in particular. " * 30
    assert seconds(only_words(500), text) < 3 * seconds(only_words(5), text) + 0.001
