"""What every shape of request has in common: how it is read, and how an edit is written into it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.types import AppliedEdit, Edit, Mode, Query

Members = dict[str, Any]  # of a request's JSON object, each raw


@dataclass(frozen=True)
class Shape:
    """One API's requests. A function that writes gives whether it wrote: not every shape has a place for all."""

    api: str
    member: str  # where the user's words stand: a body without it has another shape, or is wrong
    read: Callable[[Members], tuple[Query, ...]]
    write_system: Callable[[Members, str, Mode], bool] | None = None
    write_effort: Callable[[Members, str], bool] | None = None  # None: no place for reasoning at all
    id_prefix: str = ""  # vLLM makes the answer's id of this and the request id
    id_member: str | None = None  # the member that vLLM takes as the answer's id, in place of X-Request-Id

    def write(self, members: Members, edit: Edit) -> AppliedEdit:
        """Writes the edit into the members of a body, and says what of it was written."""
        members["model"] = json_edit.dump(edit.model)
        prompted, reasoned = False, None
        if edit.system_prompt is not None and self.write_system is not None:
            prompted = self.write_system(members, edit.system_prompt, edit.system_prompt_mode)
        if edit.reasoning is not None and self.write_effort is not None:
            reasoned = edit.reasoning.on if reasoning.write(members, edit.reasoning, self.write_effort) else None
        return AppliedEdit(prompted, reasoned)

    def identify(self, members: Members, given: str | None, new: str) -> tuple[str | None, str]:
        """The X-Request-Id to add, None where there is a better one already, and the answer's id.

        Args:
            given: the client's own X-Request-Id.
            new: an id to take where the client gave none; where the body carries the answer's id, it is written there.
        """
        own = json_edit.text(members.get(self.id_member or "request_id"))
        if self.id_member is None:
            found = given or own  # in this order vLLM looks for it
            return (new, self.id_prefix + new) if found is None else (None, self.id_prefix + found)
        if self.id_member not in members:
            own = self.id_prefix + new
            members[self.id_member] = json_edit.dump(own)
        return (None if given else new), new if own is None else own
