"""Keywords in the scripts of the world: where words end, and which spellings are equal."""

import unicodedata

import pytest

from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.config.schema import KeywordRule

SHY, ZWSP, ZWNJ, ZWJ = "\u00ad", "\u200b", "\u200c", "\u200d"


def matches(keyword: str, text: str) -> bool:
    return KeywordClassifier([(0, KeywordRule(category="a", keywords=[keyword]))]).match(text).accepted


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("script", "keyword", "text"),
    [
        ("Latin", "don't", "I don\u2019t know"),
        ("Latin", "don\u2019t", "I don't know"),
        ("Latin", "geht's", "Wie geht\u00b4s?"),
        ("Latin", "law", "the law\u2019s text"),
        ("Latin", "avocat", "l\u2019avocat"),
        ("Latin", "hawai'i", "Hawai\u02bbi"),
        ("Latin", "co-op", "a co\u2010op"),
        ("Latin", "co-op", "a co\u2011op"),
        ("Latin", "Guillain-Barré", "the Guillain\u2013Barré syndrome"),
        ("Latin", 'the "right"', "the \u201cright\u201d to know"),
        ("Latin", "Datenschutzverordnung", f"die Daten{SHY}schutz{SHY}verordnung"),
        ("Latin", f"Daten{SHY}schutz", "der Datenschutz"),
        ("Latin", "fever", f"my fe{ZWSP}ver"),
        ("Latin", "fever", "\ufefffever"),
        ("Latin", "café", f"cafe{SHY}\u0301"),
        ("Latin", "İstanbul", "istanbul"),
        ("Latin", "istanbul", "İSTANBUL"),
        ("Greek", "ΣΊΣΥΦΟΣ", "ο σίσυφος"),
        ("Greek", "νόμος", decomposed("ο νόμος;")),
        ("Cyrillic", "м'ята", "зелена м\u2019ята"),
        ("Cyrillic", "м'ята", "зелена м\u02bcята"),
        ("Cyrillic", "мой", decomposed("мой дом")),
        ("Armenian", "օրենք", "Օրենք՝ այսօր"),
        ("Georgian", "კანონი", "ეს კანონი."),
        ("Cherokee", "ᏣᎳᎩ", "ꮳꮃꭹ ꭶꮼꮒꭿꮝꮧ"),
        ("Arabic", "كتب", "هذه كُتُبٌ قديمة"),
        ("Arabic", "مُحَمَّد", "اسمه محمد"),
        ("Arabic", "كتاب", "هذا كتـــاب"),
        ("Arabic", "لا", "\ufefb"),
        ("Arabic", f"می{ZWNJ}خواهم", "من میخواهم"),
        ("Arabic", "میخواهم", f"من می{ZWNJ}خواهم"),
        ("Arabic", "آب", decomposed("آب سرد")),
        ("Hebrew", "שלום", "שָׁלוֹם עליכם"),
        ("Hebrew", "שָׁלוֹם", "שלום"),
        ("Hebrew", 'צה"ל', "חיילי צה״ל"),
        ("Hebrew", "בית-ספר", "בית־ספר"),
        ("Thaana", "ދިވެހި", "މިއީ ދިވެހި ބަހެވެ"),
        ("Nko", "ߒߞߏ", "ߒߞߏ ߞߊ߲"),
        ("Devanagari", "दिल", "मेरा दिल टूटा"),
        ("Devanagari", "हिन्दी", "यह हिन्दी।"),
        ("Devanagari", "विद्यालय", f"विद्{ZWNJ}यालय"),
        ("Devanagari", "\u095bरूरत", "ज\u093cरूरत"),
        ("Bengali", "আম", "পাকা আম।"),
        ("Bengali", "বা\u09dcি", "বাড\u09bcি"),
        ("Gurmukhi", "ਘਰ", "ਮੇਰਾ ਘਰ ਹੈ"),
        ("Gujarati", "કર", "કર ભરો"),
        ("Oriya", "ଘର", "ମୋ ଘର ଅଛି"),
        ("Tamil", "பல", "பல மொழிகள்"),
        ("Telugu", "మన", "మన దేశం"),
        ("Kannada", "ಮನೆ", "ಇದು ಮನೆ."),
        ("Malayalam", "പലിശ", "പലിശ നിരക്ക്"),
        ("Sinhala", "ගම", "මගේ ගම"),
        ("Sinhala", f"ශ්{ZWJ}රී", "ශ්රී ලංකා"),
        ("Tibetan", "ཁྲིམས", "བོད་ཁྲིམས་གསར"),
        ("Ethiopic", "ሕግ", "ሕግ፡ነው"),
        ("Hangul", "법률", decomposed("그 법률 상담")),
        ("Mongolian", "ᠮᠣᠩᠭᠣᠯ", "ᠮᠣᠩ\u180bᠭᠣᠯ"),
        ("Thai", "ความดัน", "โรคความดันโลหิตสูง"),
        ("Thai", "น้ำ", "แม่น้ำ"),
        ("Lao", "ນ້ຳ", "ດື່ມນ້ຳ"),
        ("Khmer", "ច្បាប់", f"អំពី{ZWSP}ច្បាប់{ZWSP}ការងារ"),
        ("Myanmar", "ဥပဒေ", "အလုပ်သမားဥပဒေ"),
        ("Han", "血压", "高血压的原因"),
        ("Kana", "ガイド", decomposed("ガイドライン")),
        ("Emoji", "👍", "thanks 👍🏽"),
        ("Emoji", "❤", "I ❤\ufe0f it"),
        ("Emoji", f"👩{ZWJ}⚕\ufe0f", f"a 👩{ZWJ}⚕"),
        ("Emoji", "🇪🇸", "viva 🇪🇸!"),
        ("Emoji", "🇪🇸", "🇩🇪🇪🇸"),
    ],
)
def test_a_keyword_matches(script: str, keyword: str, text: str) -> None:
    assert matches(keyword, text)


@pytest.mark.parametrize(
    ("script", "keyword", "text"),
    [
        ("Latin", "don't", "a dont"),
        ("Latin", "law", f"f{SHY}law{SHY}less"),
        ("Latin", "cafe", "un café"),
        ("Latin", "café", "un cafe"),
        ("Latin", "x", "the mean x\u0304"),
        ("Latin", "ma", "cây mạ"),
        ("Greek", "νόμος", "παράνομος"),
        ("Cyrillic", "пол", "полка"),
        ("Cyrillic", "елка", "ёлка"),
        ("Cyrillic", "за", "за\u0301мок"),
        ("Armenian", "օր", "օրենք"),
        ("Georgian", "ან", "კანონი"),
        ("Arabic", "قلب", "مقلوب"),
        ("Arabic", "علم", "بحث عِلْمِيّ"),
        ("Arabic", "سال", "سأل"),
        ("Arabic", "كتاب", f"كتاب{ZWNJ}ها"),
        ("Hebrew", "אב", "אַבָּא"),
        ("Thaana", "ރަށ", "ރަށް"),
        ("Nko", "ߒߞ", "ߒߞ߫"),
        ("Adlam", "𞤢𞤣", "𞤢𞤣\U0001e944"),
        ("Devanagari", "दिल", "दिल्ली"),
        ("Devanagari", "कम", "पानी की कमी"),
        ("Bengali", "আম", "আমি"),
        ("Gurmukhi", "ਘਰ", "ਘਰੇਲੂ"),
        ("Gujarati", "કર", "કરો"),
        ("Oriya", "ଘର", "ଘରେ"),
        ("Tamil", "பல", "பலி"),
        ("Telugu", "మన", "మనిషి"),
        ("Kannada", "ಮನ", "ಮನೆ"),
        ("Malayalam", "പല", "പലിശ"),
        ("Sinhala", "ගම", "ගමේ"),
        ("Tibetan", "ང", "ངེད"),
        ("Ethiopic", "ሕግ", "ሕግጋት"),
        ("Hangul", "법", "법률"),
        ("Mongolian", "ᠮᠣᠩ", "ᠮᠣᠩ\u180bᠭᠣᠯ"),
        ("Thai", "แม", "แม่น้ำ"),
        ("Lao", "ນ", "ນ້ຳ"),
        ("Khmer", "ក", "ការ"),
        ("Myanmar", "က", "ကို"),
        ("Kana", "カ", decomposed("ガ")),
        ("Emoji", "🇪🇸", "🇩🇪🇸🇪"),
        ("Emoji", "1", "1\ufe0f\u20e3"),
    ],
)
def test_a_keyword_that_is_part_of_a_word_or_another_word_does_not_match(script: str, keyword: str, text: str) -> None:
    assert not matches(keyword, text)
