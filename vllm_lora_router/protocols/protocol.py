"""The common interface of all API protocols: read queries from a request, and write an edit into it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_lora_router.ids import is_usable_id
from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.types import AppliedEdit, Edit, Mode, Query

Members = dict[str, Any]  # members of a request's JSON object; the values are raw JSON


@dataclass(frozen=True)
class ApiProtocol:
    """The request format of one API.

    The writing functions return whether they wrote anything, because not every API has a place for everything.
    """

    api: str
    user_text_member: str  # member with the user text; a body without it has another format, or is invalid
    read: Callable[[Members], tuple[Query, ...]]
    write_system: Callable[[Members, str, Mode], bool] | None = None
    write_effort: Callable[[Members, str], bool] | None = None  # None: the API has no place for reasoning
    id_prefix: str = ""  # vLLM makes the response's id from this prefix and the request id
    id_member: str | None = None  # member that vLLM uses as the response's id instead of X-Request-Id

    def write(self, members: Members, edit: Edit) -> AppliedEdit:
        """Write an edit into the members of a body. Return the parts of it that were written."""
        members["model"] = json_edit.encode(edit.model)
        wrote_prompt, wrote_reasoning = False, None
        if edit.system_prompt is not None and self.write_system is not None:
            wrote_prompt = self.write_system(members, edit.system_prompt, edit.system_prompt_mode)
        if edit.reasoning is not None and self.write_effort is not None:
            wrote_reasoning = edit.reasoning.on if reasoning.write(members, edit.reasoning, self.write_effort) else None
        return AppliedEdit(wrote_prompt, wrote_reasoning)

    def assign_id(self, members: Members, client_request_id: str | None, new_id: str) -> tuple[str | None, str]:
        """Determine the id of the response. A client's id that cannot be kept (see `is_usable_id`) is replaced.

        Args:
            members: members of the body. If the API takes the id from the body and the client gave none, it is added.
            client_request_id: the client's own X-Request-Id.
            new_id: the id for a request without one.

        Returns:
            The X-Request-Id to set in the request, or None if the request keeps its own id; and the response's id.
        """
        body_id = json_edit.string_value(members.get(self.id_member or "request_id"))
        if self.id_member is None:
            request_id = client_request_id or body_id  # the order in which vLLM reads them
            if request_id is None or not is_usable_id(request_id):
                return new_id, self.id_prefix + new_id
            return None, self.id_prefix + request_id
        if self.id_member not in members or (body_id is not None and not is_usable_id(body_id)):
            body_id = self.id_prefix + new_id
            members[self.id_member] = json_edit.encode(body_id)
        keeps_header = client_request_id is not None and is_usable_id(client_request_id)
        return (None if keeps_header else new_id), new_id if body_id is None else body_id
