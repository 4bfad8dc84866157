"""Keyword rules: the first rule in list order that matches chooses."""

import asyncio
import hashlib
import re
import unicodedata
from collections.abc import Sequence

from vllm_lora_router.config.schema import KeywordRule
from vllm_lora_router.types import Classification, Method, Query

# Scripts written without spaces: Thai to Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W{_UNSPACED}]"  # a letter, digit or underscore of a script that separates its words
_WORD = re.compile(rf"{_LETTER}+")
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# A longer text is matched in a thread, word by word, so that the event loop gets its turn in between.
_LONG = 20_000  # characters


class KeywordClassifier:
    """Looks a text's words up in an index of all keywords: the time grows with the text, not with the rules."""

    method: Method = "keyword"
    reads = frozenset({"text"})

    def __init__(self, rules: Sequence[tuple[int, KeywordRule]]) -> None:
        """Takes each rule with its place in the configuration's list, which the evidence names."""
        self.rules = dict(rules)
        self.fingerprint = hashlib.sha256(repr(self.rules).encode()).hexdigest()
        self._indexes = (_Index(self.rules, case_sensitive=True), _Index(self.rules, case_sensitive=False))
        # These match a text that has none of their keywords.
        self._nor = {index for index, rule in rules if rule.operator == "NOR"}

    def now(self, query: Query) -> Classification | None:
        """What can be said without waiting; None of a long text."""
        return self.match(query.text) if len(query.text) <= _LONG else None

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        if any(len(query.text) > _LONG for query in queries):
            return await asyncio.to_thread(lambda: [self.match(query.text) for query in queries])
        return [self.match(query.text) for query in queries]

    def match(self, text: str) -> Classification:
        """The classification of one text. An empty text matches no rule, not even NOR."""
        if text and not text.isspace():
            text = _normalised(text)
            found: dict[int, list[str]] = {}
            for index in self._indexes:
                index.find(text, found)
            for place in sorted(found.keys() | self._nor):
                rule = self.rules[place]
                matched = sorted(found.get(place, ()), key=rule.keywords.index)
                if _holds(rule, len(matched)):
                    evidence = {"rule": place, "operator": rule.operator, "keywords": matched}
                    return Classification(rule.category, 1.0, {rule.category: 1.0}, "rule", 1.0, True, evidence)
        return Classification(None, 0.0, {}, "rule", 1.0, False)


class _Index:
    """The keywords of all rules of one case sensitivity, by the longest word of each."""

    def __init__(self, rules: dict[int, KeywordRule], *, case_sensitive: bool) -> None:
        self.case_sensitive = case_sensitive
        self.by_word: dict[str, list[_Entry]] = {}
        self.anywhere: list[_Entry] = []
        for place, rule in rules.items():
            if rule.case_sensitive == case_sensitive:
                for keyword in dict.fromkeys(rule.keywords):
                    self._add(place, keyword)

    def find(self, text: str, found: dict[int, list[str]]) -> None:
        """Adds to `found`, by rule, the keywords that the text has, as the configuration writes them."""
        if not self.by_word and not self.anywhere:
            return
        if not self.case_sensitive:
            text = text.casefold()
        candidates = list(self.anywhere)
        for word in {match.group() for match in _WORD.finditer(text)} if self.by_word else ():
            candidates += self.by_word.get(word, ())
        for place, keyword, pattern in candidates:
            if pattern is None or pattern.search(text):
                found.setdefault(place, []).append(keyword)

    def _add(self, place: int, keyword: str) -> None:
        text = _normalised(keyword)
        if not self.case_sensitive:
            text = text.casefold()
        words = _WORD.findall(text)
        if words == [text]:
            self.by_word.setdefault(text, []).append((place, keyword, None))
        elif not words or _HAS_UNSPACED.search(text):
            self.anywhere.append((place, keyword, re.compile(re.escape(text))))
        else:
            # Phrases may be broken over lines; "c++" has a word boundary on its left only.
            inner = r"\s+".join(map(re.escape, text.split()))
            left = rf"(?<!{_LETTER})" if _WORD.match(text.lstrip()) else ""
            right = rf"(?!{_LETTER})" if _WORD.match(text.rstrip()[-1]) else ""
            entry = (place, keyword, re.compile(left + inner + right))
            self.by_word.setdefault(max(words, key=len), []).append(entry)


_Entry = tuple[int, str, re.Pattern[str] | None]  # rule, keyword, and what else must hold once its word was found


def _holds(rule: KeywordRule, matched: int) -> bool:
    if rule.operator == "AND":
        return matched == len(set(rule.keywords))
    return matched > 0 if rule.operator == "OR" else matched == 0


def _normalised(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)
