"""A decision in plain English, by its lines alone."""

from collections.abc import Iterator, Mapping, Sequence

from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.routing.ab_assignment import order
from vllm_lora_router.tools.audit.counterfactual import Change, place_of, smallest_change
from vllm_lora_router.tools.audit.join import Recorded
from vllm_lora_router.tools.audit.reader import Line
from vllm_lora_router.tools.audit.replay import Again, chosen_in, decide_again, differences, prompts

__all__ = ["Again", "Change", "decide_again", "explain", "smallest_change"]

_WHY = {
    "below_threshold": "No method was sure",
    "no_text": "There were no words to go by",
    "mixed": "Its prompts are about different things, so none of them decides",
    "off": "Routing was off",
    "not_in_share": "This user is not among those who are routed",
    "error": "A method failed, and no other was sure",
    "timeout": "A method was late, and no other was sure",
    "overload": "A method had too much to do, and no other was sure",
}


def explain(recorded: Recorded) -> list[str]:
    """What was asked for, found, decided, served and thought of it: a sentence or two each, in the order of events."""
    line = recorded.decision
    said = [
        *_asked(line),
        *_share(line["plan"]),
        *_methods(line),
        *_affinity(line["plan"]),
        *_decided(line),
        *_served(line),
        *_outcome(line, recorded.outcome),
        *_feedback(recorded.feedback),
        *_what_if(line),
        *_decided_again(line),
    ]
    return [printable(sentence) for sentence in said]


def _asked(line: Line) -> Iterator[str]:
    who = f"client {line['client']}" if line["client"] else "a client without an API key"
    tenant = f" of tenant {line['tenant']}" if line["tenant"] else ""
    model = "no model" if line["asked_for"] is None else repr(line["asked_for"])
    several = f", with {line['prompts']} prompts" if line["prompts"] > 1 else ""
    yield f"At {line['at']}, {who}{tenant} asked {line['path']} for {model}{several}: {line['id']}."
    if (text := line.get("text")) is not None:
        yield f"What was said: {_quoted(text if isinstance(text, list) else [text])}."
    yield f"The configuration in force was {line['config']}."


def _share(plan: Line) -> Iterator[str]:
    share = plan.get("share")
    if share is None:
        return
    way = "is not among them" if share["at"] >= share["share"] else "is among them"
    yield (
        f"A share of {share['share']:g} of the users is routed: key {share['key']}, found in {share['by']}, stands at "
        f"{share['at']:.4f} and {way}."
    )


def _methods(line: Line) -> Iterator[str]:
    plan = line["plan"]
    if plan["reason"] == "mixed":
        for number, steps in enumerate(prompts(plan["steps"]), start=1):
            yield from (f"Prompt {number}: {_step(step)}" for step in steps)
        return
    if line["prompts"] > 1 and plan["steps"]:
        yield "All prompts are about the same; this is how the first was found:"
    yield from map(_step, plan["steps"])


def _step(step: Line) -> str:
    place = place_of(step["method"], step.get("scale"))
    place = place[0].upper() + place[1:]
    if "scores" not in step:
        error = f" ({step['error']})" if step.get("error") else ""
        return f"{place} gave no answer: {step['failure']}{error}."
    if step["category"] is None:
        evidence = step["evidence"]
        why = evidence.get("not_asked") or evidence.get("not_by")
        return f"{place} found nothing{f': {why}' if why else ''}."
    if (chosen := chosen_in(step)) is None:
        return f"{place} chose {step['category']}{_evidence(step['evidence'])}."
    reached = "reaches" if chosen.sure else "stays below"
    others = sorted(((s, name) for name, s in step["scores"].items() if name != chosen.category), reverse=True)[:3]
    behind = f"; then {', '.join(f'{name} {score:.4f}' for score, name in others)}" if others else ""
    known = ", as found before" if step["cached"] else ""
    return (
        f"{place} gave {chosen.category} {chosen.score:.4f}, which {reached} its threshold {chosen.threshold:g}"
        f"{_evidence(step['evidence'])}{behind}{known}."
    )


def _evidence(evidence: Mapping[str, object]) -> str:
    keywords, labels = evidence.get("keywords"), evidence.get("labels")
    if isinstance(keywords, list):
        rule = f"rule {evidence.get('rule')} ({evidence.get('operator')})"
        matched = f"{_quoted(keywords)} matched" if keywords else "none of its keywords stands there"
        return f" by {rule}: {matched}"
    if "nearest" in evidence:
        return f" (nearest example: {evidence['nearest']!r}, similarity {evidence.get('similarity')})"
    if "tool" in evidence:
        return f" ({evidence['tool']} {_asked_for(evidence)})"
    if isinstance(labels, Mapping) and labels:
        return f" (labels: {', '.join(f'{label} {p}' for label, p in labels.items())})"
    return ""


def _asked_for(evidence: Mapping[str, object]) -> str:
    names = ("model", "models", "use_reasoning", "reasoning_effort", "system_prompt", "keep")
    wishes = [f"{name} {evidence[name]}" for name in names if evidence.get(name) not in (None, [])]
    return f"asked for {', '.join(wishes)}" if wishes else "asked for nothing else"


def _affinity(plan: Line) -> Iterator[str]:
    if (affinity := plan.get("affinity")) is None:
        return
    turns, category, margin = affinity["turns"], affinity["category"], affinity["margin"]
    known = "" if affinity["before"] is None else f"it was remembered to be about {affinity['before']['category']}; "
    told = ", ".join(f"{turn['back']} back {turn['category']} {turn['score']:.4f} ({turn['method']})" for turn in turns)
    turn = "1 earlier turn speaks" if len(turns) == 1 else f"{len(turns)} earlier turns speak"
    spoke = f"{turn}: {told}" if turns else "no earlier turn speaks"
    yield f"The conversation was about {category}: {known}{spoke}."
    against = affinity["against"]
    if against is None:
        yield f"The last turn says nothing that a method is sure of, so it stays with {category}."
    elif against == category:
        yield f"The last turn is about {category}, too."
    elif affinity["held"]:
        yield f"The last turn alone would be {against}, but not by the margin of {margin:g}: it stays with {category}."
    else:
        yield f"The last turn is {against} by the margin of {margin:g} or more: it leaves {category}."


def _decided(line: Line) -> Iterator[str]:
    plan = line["plan"]
    why = _WHY.get(plan["reason"])
    if plan["reason"] == "named":
        yield "The client named the model itself: nothing was decided."
    elif plan["method"] is not None:
        scale = next((step.get("scale") for step in reversed(plan["steps"]) if step["method"] == plan["method"]), None)
        score = f"{plan['confidence']:.4f} by {place_of(plan['method'], scale)}"
        yield f"So the category is {plan['category']} ({score})."
    elif plan["category"] is not None:
        yield f"{why}: the fallback category {plan['category']} takes it."
    elif why is not None:
        yield f"{why}: default_model takes it."
    if (draw := plan.get("draw")) is not None:
        weights = ", ".join(f"{arm} {weight:g}" for arm, weight in draw["weights"].items())
        yield (
            f"{draw['category']} has an A/B test ({weights}): key {draw['key']}, found in {draw['by']}, draws "
            f"{draw['arm']}."
        )
        if len(ranked := order(draw["key"], draw["category"], draw["weights"])) > 1:
            yield f"Where that cannot serve, the same key's next is {', then '.join(ranked[1:])}."


def _served(line: Line) -> Iterator[str]:
    served = line["served"]
    yield from (f"{one['adapter']} could not serve: {one['why']}." for one in line["refused"])
    if line["reason"] == "observe":
        first = line["plan"]["candidates"][0]["model"] if line["plan"]["candidates"] else "nothing else"
        yield f"Routing only observes: {first} would have been tried first, and what the client named was served."
    # Only what has had several contents is called otherwise than its name.
    name = served["version"] or served["model"]
    kind = "adapter" if served["adapter"] is not None else "model"
    arm = f", arm {served['arm']}" if served["arm"] else ""
    digest = f" with content {served['digest']}" if served["digest"] else ""
    yield f"Served by the {kind} {name}{digest}{arm}, {line['ms']['overhead']:.1f} ms after the request was read."
    wrote = _written(served)
    yield f"Written into the request: {wrote}." if wrote else "Nothing but the model was written into the request."


def _written(served: Line) -> str:
    prompt = ["a system prompt"] if served["system_prompt"] else []
    reasoning = [] if served["reasoning"] is None else [f"reasoning {'on' if served['reasoning'] else 'off'}"]
    return " and ".join([*prompt, *reasoning])


def _outcome(line: Line, outcome: Line | None) -> Iterator[str]:
    if outcome is None:
        yield "How the response went is not in the record."
        return
    if _written(line["served"]) and not _written(outcome):
        yield "vLLM refused that with 400, and was asked again with the model alone."
    status = "no response had begun" if outcome["status"] is None else f"the response had status {outcome['status']}"
    first = outcome["first_byte_ms"]
    began = "" if first is None else f", began after {first:.1f} ms"
    finish = f", finish reason {outcome['finish']}" if outcome["finish"] else ""
    ended = "was broken off" if outcome["aborted"] else "ended"
    yield f"In the end {status}{began}, and it {ended} after {outcome['total_ms']:.1f} ms{finish}."


def _feedback(feedback: Sequence[Line]) -> Iterator[str]:
    for one in feedback:
        comment = f": {one['comment']!r}" if one["comment"] else ""
        yield f"Feedback at {one['at']}: {one['score']:g}{comment}."


def _what_if(line: Line) -> Iterator[str]:
    for step in line["plan"]["steps"] if line["plan"]["method"] == "keyword" else ():
        evidence = step.get("evidence", {})
        if keywords := evidence.get("keywords") if step.get("sure") else None:
            needed = "one of " if evidence.get("operator") == "AND" and len(keywords) > 1 else ""
            yield f"Without {needed}{_quoted(keywords)}, rule {evidence.get('rule')} would not have matched."
    change = smallest_change(line)
    if change is not None:
        several = " (This is of the first prompt: the others' scores are not kept.)" if line["prompts"] > 1 else ""
        yield f"{change}{several}"
    elif any(step.get("scores") and step["scale"] != "rule" for step in line["plan"]["steps"]):
        yield "No change of one score, one threshold or the margin alone would have decided otherwise."


def _decided_again(line: Line) -> Iterator[str]:
    found = differences(line)
    yield (
        "Decided again from this line alone, it is the same."
        if not found
        else (f"Decided again from this line alone, it is not the same: {'; '.join(found)}.")
    )


def _quoted(texts: Sequence[object]) -> str:
    return " and ".join(f"'{text}'" for text in texts)
