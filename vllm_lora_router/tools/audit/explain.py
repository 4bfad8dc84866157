"""Explanations of recorded decisions in plain English."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.routing.ab_assignment import rank_arms
from vllm_lora_router.text import printable
from vllm_lora_router.tools.audit.counterfactual import describe_method, smallest_change
from vllm_lora_router.tools.audit.join import JoinedDecision
from vllm_lora_router.tools.audit.replay import differences, replay_step, split_by_prompt

_REASONS = {
    "below_threshold": "No method accepted a category",
    "no_text": "The request has no user text",
    "mixed": "The prompts have different categories",
    "off": "Routing is off",
    "not_in_share": "The user is not in the routed share",
    "error": "A method failed, and no other method accepted a category",
    "timeout": "A method timed out, and no other method accepted a category",
    "overload": "A method was overloaded, and no other method accepted a category",
}


def explain(joined: JoinedDecision) -> list[str]:
    """Return sentences about a decision, its outcome and its feedback, in the order of events."""
    line = joined.decision
    sentences = [
        *_request(line),
        *_share(line["plan"]),
        *_steps(line),
        *_affinity(line["plan"]),
        *_category(line),
        *_served(line),
        *_outcome(line, joined.outcome),
        *_feedback(joined.feedback),
        *_counterfactuals(line),
        *_replay(line),
    ]
    return [printable(sentence) for sentence in sentences]


def _request(line: AuditLine) -> Iterator[str]:
    client = f"client {line['client']}" if line["client"] else "a client without an API key"
    tenant = f" of tenant {line['tenant']}" if line["tenant"] else ""
    model = "no model" if line["requested_model"] is None else f"model {line['requested_model']!r}"
    prompts = f" with {line['prompts']} prompts" if line["prompts"] > 1 else ""
    yield f"At {line['at']}, {client}{tenant} requested {model} at {line['path']}{prompts}: {line['id']}."
    if (text := line.get("text")) is not None:
        yield f"User text: {_quoted(text if isinstance(text, list) else [text])}."
    yield f"Configuration in effect: {line['config']}."


def _share(plan: AuditLine) -> Iterator[str]:
    share = plan.get("share")
    if share is None:
        return
    result = "is not routed" if share["position"] >= share["share"] else "is routed"
    yield (
        f"A share of {share['share']:g} of the users is routed: key {share['key']} (from {share['key_source']}) has "
        f"position {share['position']:.4f} and {result}."
    )


def _steps(line: AuditLine) -> Iterator[str]:
    plan = line["plan"]
    if plan["reason"] == "mixed":
        for number, steps in enumerate(split_by_prompt(plan["steps"]), start=1):
            yield from (f"Prompt {number}: {_step(step)}" for step in steps)
        return
    if line["prompts"] > 1 and plan["steps"]:
        yield "All prompts have the same category. These are the steps of the first prompt:"
    yield from map(_step, plan["steps"])


def _step(step: AuditLine) -> str:
    method = describe_method(step["method"], step.get("scale"))
    method = method[0].upper() + method[1:]
    if "scores" not in step:
        error = f" ({step['error']})" if step.get("error") else ""
        return f"{method} failed: {step['failure']}{error}."
    if step["category"] is None:
        evidence = step["evidence"]
        reason = evidence.get("not_called") or evidence.get("excluded")
        return f"{method} returned no category{f': {reason}' if reason else ''}."
    if (selected := replay_step(step)) is None:
        return f"{method} selected {step['category']}{_evidence(step['evidence'])}."
    comparison = "reaches" if selected.accepted else "is below"
    others = sorted(((s, name) for name, s in step["scores"].items() if name != selected.category), reverse=True)[:3]
    next_best = f"; next: {', '.join(f'{name} {score:.4f}' for score, name in others)}" if others else ""
    cached = "; answered from the cache" if step["cached"] else ""
    return (
        f"{method} gave {selected.category} a score of {selected.score:.4f}, which {comparison} the threshold "
        f"{selected.threshold:g}{_evidence(step['evidence'])}{next_best}{cached}."
    )


def _evidence(evidence: Mapping[str, object]) -> str:
    keywords, labels = evidence.get("keywords"), evidence.get("labels")
    if isinstance(keywords, list):
        rule = f"rule {evidence.get('rule')} ({evidence.get('operator')})"
        matches = f"{_matched(evidence)} matched" if keywords else "none of its keywords occurs"
        return f" by {rule}: {matches}"
    if "nearest" in evidence:
        return f" (nearest example: {evidence['nearest']!r}, similarity {evidence.get('similarity')})"
    if "tool" in evidence:
        return f" ({evidence['tool']} {_overrides(evidence)})"
    if isinstance(labels, Mapping) and labels:
        return f" (labels: {', '.join(f'{label} {p}' for label, p in labels.items())})"
    return ""


def _overrides(evidence: Mapping[str, object]) -> str:
    names = ("model", "models", "use_reasoning", "reasoning_effort", "system_prompt", "keep")
    overrides = [f"{name} {evidence[name]}" for name in names if evidence.get(name) not in (None, [])]
    return f"set {', '.join(overrides)}" if overrides else "set nothing else"


def _affinity(plan: AuditLine) -> Iterator[str]:
    if (affinity := plan.get("affinity")) is None:
        return
    turns, category, margin = affinity["turns"], affinity["category"], affinity["margin"]
    topic = affinity["earlier_topic"]
    earlier = "" if topic is None else f"its earlier topic was {topic['category']}; "
    topics = ", ".join(
        f"{turn['turns_ago']} ago {turn['category']} {turn['score']:.4f} ({turn['method']})" for turn in turns
    )
    count = "1 earlier turn has a category" if len(turns) == 1 else f"{len(turns)} earlier turns have a category"
    history = f"{count}: {topics}" if turns else "no earlier turn has a category"
    yield f"The topic of the conversation was {category}: {earlier}{history}."
    alternative = affinity["alternative"]
    if alternative is None:
        yield f"No method accepted a category for the last turn, so the conversation stays with {category}."
    elif alternative == category:
        yield f"The last turn is also about {category}."
    elif affinity["kept"]:
        yield (
            f"The last turn alone would be routed to {alternative}, but its lead is below the margin of {margin:g}: "
            f"the conversation stays with {category}."
        )
    else:
        yield (
            f"The last turn is about {alternative}, with a lead of at least the margin of {margin:g}: the conversation "
            f"leaves {category}."
        )


def _category(line: AuditLine) -> Iterator[str]:
    plan = line["plan"]
    reason = _REASONS.get(plan["reason"])
    if plan["reason"] == "named":
        yield "The client named the model: no category was selected."
    elif plan["method"] is not None:
        scale = next((step.get("scale") for step in reversed(plan["steps"]) if step["method"] == plan["method"]), None)
        score = f"{plan['confidence']:.4f} by {describe_method(plan['method'], scale)}"
        yield f"The category is {plan['category']} ({score})."
    elif plan["category"] is not None:
        yield f"{reason}: the request falls back to the category {plan['category']}."
    elif reason is not None:
        yield f"{reason}: the request falls back to default_model."
    if (assignment := plan.get("assignment")) is not None:
        weights = ", ".join(f"{arm} {weight:g}" for arm, weight in assignment["weights"].items())
        yield (
            f"{assignment['category']} has an A/B test ({weights}): key {assignment['key']} (from "
            f"{assignment['key_source']}) is assigned to {assignment['arm']}."
        )
        arms = rank_arms(assignment["key"], assignment["category"], assignment["weights"])
        if len(arms) > 1:
            yield f"If that arm cannot serve, the key's next arm is {', then '.join(arms[1:])}."


def _served(line: AuditLine) -> Iterator[str]:
    served = line["served"]
    yield from (f"{skipped['adapter']} could not serve: {skipped['reason']}." for skipped in line["skipped"])
    if line["reason"] == "observe":
        candidates = line["plan"]["candidates"]
        planned = f"{candidates[0]['model']} would be the first candidate" if candidates else "there is no candidate"
        yield f"Observe mode: {planned}, but the request got the model that the client named."
    # The engine's name differs from the adapter's name only if the adapter has had several versions.
    name = served["version"] or served["model"]
    kind = "adapter" if served["adapter"] is not None else "model"
    arm = f", arm {served['arm']}" if served["arm"] else ""
    digest = f" with content {served['content_digest']}" if served["content_digest"] else ""
    overhead_ms = line["timings_ms"]["overhead"]
    yield f"Served by the {kind} {name}{digest}{arm}, {overhead_ms:.1f} ms after the request was read."
    edit = _edit(served)
    yield f"Written into the request: {edit}." if edit else "Only the model was changed in the request."


def _edit(line: AuditLine) -> str:
    prompt = ["a system prompt"] if line["system_prompt"] else []
    reasoning = [] if line["reasoning"] is None else [f"reasoning {'on' if line['reasoning'] else 'off'}"]
    return " and ".join([*prompt, *reasoning])


def _outcome(line: AuditLine, outcome: AuditLine | None) -> Iterator[str]:
    if outcome is None:
        yield "The record has no outcome for this request."
        return
    if _edit(line["served"]) and not _edit(outcome):
        yield "vLLM refused the edited request with status 400 and got it again with only the model changed."
    response = "No response had begun" if outcome["status"] is None else f"The response had status {outcome['status']}"
    first = outcome["first_byte_ms"]
    began = "" if first is None else f", began after {first:.1f} ms"
    finish = f", finish reason {outcome['finish_reason']}" if outcome["finish_reason"] else ""
    ended = "was aborted" if outcome["aborted"] else "ended"
    yield f"{response}{began}, and the request {ended} after {outcome['total_ms']:.1f} ms{finish}."


def _feedback(feedback: Sequence[AuditLine]) -> Iterator[str]:
    for line in feedback:
        comment = f": {line['comment']!r}" if line["comment"] else ""
        yield f"Feedback at {line['at']}: {line['score']:g}{comment}."


def _counterfactuals(line: AuditLine) -> Iterator[str]:
    for step in line["plan"]["steps"] if line["plan"]["method"] == "keyword" else ():
        evidence = step.get("evidence", {})
        if keywords := evidence.get("keywords") if step.get("accepted") else None:
            needs_all = evidence.get("operator") == "AND" and len(keywords) > 1
            matched = _matched(evidence)
            condition = f"If one of {matched} were missing" if needs_all else f"Without {matched}"
            yield f"{condition}, rule {evidence.get('rule')} would not match."
    change = smallest_change(line)
    if change is not None:
        prompts = " (This applies to the first prompt: the record has no scores of the others.)"
        yield f"{change}{prompts if line['prompts'] > 1 else ''}"
    elif any(step.get("scores") and step["scale"] != "rule" for step in line["plan"]["steps"]):
        yield "No change of one score, one threshold or the margin alone would change the decision."


def _replay(line: AuditLine) -> Iterator[str]:
    changed = differences(line)
    yield (
        f"Replaying this line gives another decision: {'; '.join(changed)}."
        if changed
        else "Replaying this line gives the same decision."
    )


def _matched(evidence: Mapping[str, Any]) -> str:
    """Return the keywords of a rule that occur in the text. The record lists only the first ones."""
    more = evidence.get("more_keywords")
    return _quoted(evidence["keywords"]) + (f" and {more} more keywords" if more else "")


def _quoted(texts: Sequence[object]) -> str:
    return " and ".join(f"'{text}'" for text in texts)
