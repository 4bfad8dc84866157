"""Keyword rules: the first matching rule in list order decides."""

import asyncio
import hashlib
import re
import unicodedata
from collections.abc import Sequence

from vllm_lora_router.config.schema import KeywordRule
from vllm_lora_router.types import Classification, Method, Query

# Scripts that do not separate words with spaces: Thai to Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\W{_UNSPACED}]"  # a letter, digit or underscore of a script that separates words with spaces
_WORD = re.compile(rf"{_LETTER}+")
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# Longer texts are matched in a thread, so that the event loop can run between the words.
_MAX_INLINE_CHARACTERS = 20_000


class KeywordClassifier:
    """Classifies texts by keyword rules.

    The words of a text are looked up in an index of all keywords, so the duration grows with the text and not with
    the number of rules.
    """

    method: Method = "keyword"
    reads = frozenset({"text"})

    def __init__(self, rules: Sequence[tuple[int, KeywordRule]]) -> None:
        """Build the index.

        Args:
            rules: Each rule with its position in the configuration's list, which the evidence names.
        """
        self.rules = dict(rules)
        self.fingerprint = hashlib.sha256(repr(self.rules).encode()).hexdigest()
        self._indexes = (_Index(self.rules, case_sensitive=True), _Index(self.rules, case_sensitive=False))
        # NOR rules match texts that contain none of their keywords, so the index cannot find them.
        self._nor = {position for position, rule in rules if rule.operator == "NOR"}

    def classify_now(self, query: Query) -> Classification | None:
        """Return the classification, or None if the text is too long for the event loop."""
        return self.match(query.text) if len(query.text) <= _MAX_INLINE_CHARACTERS else None

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        if any(len(query.text) > _MAX_INLINE_CHARACTERS for query in queries):
            return await asyncio.to_thread(lambda: [self.match(query.text) for query in queries])
        return [self.match(query.text) for query in queries]

    def match(self, text: str) -> Classification:
        """Return the classification of one text. An empty text matches no rule, not even a NOR rule."""
        if text and not text.isspace():
            text = _normalized(text)
            matches: dict[int, list[str]] = {}
            for index in self._indexes:
                index.collect(text, matches)
            for position in sorted(matches.keys() | self._nor):
                rule = self.rules[position]
                keywords = sorted(matches.get(position, ()), key=rule.keywords.index)
                if _is_satisfied(rule, len(keywords)):
                    evidence = {"rule": position, "operator": rule.operator, "keywords": keywords}
                    return Classification(rule.category, 1.0, {rule.category: 1.0}, "rule", 1.0, True, evidence)
        return Classification(None, 0.0, {}, "rule", 1.0, False)


class _Index:
    """The keywords of all rules with the same case sensitivity, indexed by the longest word of each keyword."""

    def __init__(self, rules: dict[int, KeywordRule], *, case_sensitive: bool) -> None:
        self.case_sensitive = case_sensitive
        self.by_word: dict[str, list[_Entry]] = {}
        self.anywhere: list[_Entry] = []  # keywords that need no word boundary
        for position, rule in rules.items():
            if rule.case_sensitive == case_sensitive:
                for keyword in dict.fromkeys(rule.keywords):
                    self._add(position, keyword)

    def collect(self, text: str, matches: dict[int, list[str]]) -> None:
        """Add the keywords that the text contains to `matches`, by rule and as the configuration spells them."""
        if not self.by_word and not self.anywhere:
            return
        if not self.case_sensitive:
            text = text.casefold()
        candidates = list(self.anywhere)
        for word in {match.group() for match in _WORD.finditer(text)} if self.by_word else ():
            candidates += self.by_word.get(word, ())
        for position, keyword, pattern in candidates:
            if pattern is None or pattern.search(text):
                matches.setdefault(position, []).append(keyword)

    def _add(self, position: int, keyword: str) -> None:
        text = _normalized(keyword)
        if not self.case_sensitive:
            text = text.casefold()
        words = _WORD.findall(text)
        if words == [text]:
            self.by_word.setdefault(text, []).append((position, keyword, None))
        elif not words or _HAS_UNSPACED.search(text):
            self.anywhere.append((position, keyword, re.compile(re.escape(text))))
        else:
            # A phrase may contain line breaks. A keyword such as "c++" has a word boundary only on its left side.
            inner = r"\s+".join(map(re.escape, text.split()))
            left = rf"(?<!{_LETTER})" if _WORD.match(text.lstrip()) else ""
            right = rf"(?!{_LETTER})" if _WORD.match(text.rstrip()[-1]) else ""
            entry = (position, keyword, re.compile(left + inner + right))
            self.by_word.setdefault(max(words, key=len), []).append(entry)


_Entry = tuple[int, str, re.Pattern[str] | None]  # rule, keyword, and a pattern that must match in addition


def _is_satisfied(rule: KeywordRule, matched: int) -> bool:
    if rule.operator == "AND":
        return matched == len(set(rule.keywords))
    return matched > 0 if rule.operator == "OR" else matched == 0


def _normalized(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)
