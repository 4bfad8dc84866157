"""An MCP tool server that classifies by regular expressions and estimates the reasoning effort of a question.

    python rules.py                  # on standard input and output, as rules.yaml starts it
    python rules.py http 8101        # at http://127.0.0.1:8101/mcp

It needs `pip install 'mcp>=2,<3'` only, and nothing of the router. Copy it and write your own rules.
"""

import re
import sys
from typing import Any

from mcp.server.mcpserver import MCPServer

# `class` in an answer is an index into this order.
PATTERNS = {
    "technical": [
        r"\b(python|java(script)?|sql|c\+\+|rust)(?!\w)",
        r"\b(stack ?trace|async|compil\w+|exception)\b",
        r"```",
    ],
    "medical": [r"\b(symptoms?|diagnos\w+|dosage|blood pressure)\b", r"\b\d+ ?(mg|ml)\b", r"\bdoctors?\b"],
    "legal": [r"\b(contracts?|lawsuits?|landlords?|copyright)\b", r"\bGDPR\b", r"§ ?\d+"],
}
RULES = {name: [re.compile(pattern, re.IGNORECASE) for pattern in patterns] for name, patterns in PATTERNS.items()}
DESCRIPTIONS = {
    "technical": "Programming and technical questions",
    "medical": "Medicine and health care",
    "legal": "Law and contracts",
}

# Words of questions that need reasoning.
HARD = re.compile(r"\b(why|how|explain|compare|prove|derive|design|debug|step by step|trade-?offs?)\b", re.IGNORECASE)
LONG, VERY_LONG = 25, 80  # words

KEEP_S = 600  # the same text always has the same answer; a tool that looks up data keeps answers shorter, or not at all


def reasoning(text: str) -> dict[str, Any]:
    """Return the reasoning settings for a text."""
    words, hard = len(text.split()), len(HARD.findall(text))
    if not hard and words < LONG:
        return {"use_reasoning": False}
    effort = "high" if hard > 1 or words >= VERY_LONG else "medium"
    return {"use_reasoning": True, "reasoning_effort": effort}


def classify(text: str) -> dict[str, Any]:
    """Return the category with the most matches, and its share of all matches as the confidence."""
    hits = [sum(len(pattern.findall(text)) for pattern in patterns) for patterns in RULES.values()]
    # Matches of two categories lower the confidence of both. Without a match all are 0, and the next method or
    # default_model serves the request.
    probabilities = [hit / max(sum(hits), 1) for hit in hits]
    best = probabilities.index(max(probabilities))
    return {
        "class": best,
        "confidence": probabilities[best],
        "probabilities": probabilities,
        **reasoning(text),
        "keep": {"by": "text", "seconds": KEEP_S},
    }


server = MCPServer("rules", log_level="WARNING")


@server.tool()
def list_categories() -> dict[str, Any]:
    return {"categories": list(RULES), "category_system_prompts": {}, "category_descriptions": DESCRIPTIONS}


@server.tool()
def classify_text(text: str, with_probabilities: bool = False) -> dict[str, Any]:
    answer = classify(text)
    if not with_probabilities:
        del answer["probabilities"]
    return answer


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", port=int(sys.argv[2]))
    else:
        server.run()
