"""A tool server that classifies by rules of its own: regular expressions, and how hard a question looks.

    python rules.py                  # over standard streams, as rules.yaml starts it
    python rules.py http 8101        # at http://127.0.0.1:8101/mcp

Needs `pip install 'mcp>=2,<3'` and nothing else of the router's: copy it, and write what you know.
"""

import re
import sys
from typing import Any

from mcp.server.mcpserver import MCPServer

# `class` is a place in this order.
PATTERNS = {
    "technical": [
        r"\b(python|java(script)?|sql|c\+\+|rust)(?!\w)",
        r"\b(stack ?trace|async|compil\w+|exception)\b",
        r"```",
    ],
    "medical": [r"\b(symptoms?|diagnos\w+|dosage|blood pressure)\b", r"\b\d+ ?(mg|ml)\b", r"\bdoctors?\b"],
    "legal": [r"\b(contracts?|lawsuits?|landlords?|copyright)\b", r"\bGDPR\b", r"§ ?\d+"],
}
RULES = {name: [re.compile(one, re.IGNORECASE) for one in patterns] for name, patterns in PATTERNS.items()}
DESCRIPTIONS = {
    "technical": "Programming and technical questions",
    "medical": "Medicine and health care",
    "legal": "Law and contracts",
}

# Words by which somebody asks to be reasoned with.
HARD = re.compile(r"\b(why|how|explain|compare|prove|derive|design|debug|step by step|trade-?offs?)\b", re.IGNORECASE)
LONG, VERY_LONG = 25, 80  # words

KEEP_S = 600  # the same words mean the same; a tool that looks things up would keep less, or nothing


def reasoning(text: str) -> dict[str, Any]:
    """How hard the model is to think."""
    words, hard = len(text.split()), len(HARD.findall(text))
    if not hard and words < LONG:
        return {"use_reasoning": False}
    effort = "high" if hard > 1 or words >= VERY_LONG else "medium"
    return {"use_reasoning": True, "reasoning_effort": effort}


def classify(text: str) -> dict[str, Any]:
    """Which rules match, and how clear that is."""
    hits = [sum(len(pattern.findall(text)) for pattern in patterns) for patterns in RULES.values()]
    # A word for each of two categories is not enough for either. Without any word all are 0, and the next method,
    # or default_model, decides.
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
