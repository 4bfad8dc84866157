"""Names that an adapter may and may not have."""

import pytest

from vllm_lora_router.config.adapter_names import invalid_name_reason


@pytest.mark.parametrize("name", ["medical-lora", "acme/medical v2", "医療", "Text", "auto-lora"])
def test_plain_name_is_accepted(name: str) -> None:
    assert invalid_name_reason(name, {"acme/tiny"}, {"MoM", "auto"}) is None


@pytest.mark.parametrize("name", ["text", "image", "audio", "video", "input"])
def test_name_of_a_content_type_is_refused_with_the_reason(name: str) -> None:
    reason = invalid_name_reason(name, {"acme/tiny"}, {"MoM", "auto"})
    assert reason is not None
    assert f"to all chat requests for the base model that have '{name}' content" in reason
    assert f"'{name}-lora'" in reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme/tiny", "the base model's served name"),
        ("MoM", "is an auto name, which requests routing"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("medical\nlora", "a line break or a control character"),
        ("medical\u2028lora", "a line break or a control character"),
        ("medical\x00", "a line break or a control character"),
        (" medical", "use 'medical'"),
        ("medical\u00a0", "use 'medical'"),
    ],
)
def test_invalid_name_is_refused_with_the_reason(name: str, expected: str) -> None:
    reason = invalid_name_reason(name, {"acme/tiny"}, {"MoM", "auto"})
    assert reason is not None and expected in reason
