"""The report of `GET /v1/router/adapters` has the fields that its OpenAPI schema documents."""

from vllm_lora_router.server.schemas.adapters import AdaptersResponse

from .conftest import Server, write_adapter


async def test_report_has_documented_fields(server: Server) -> None:
    write_adapter(server.uploads / "requested", "1")
    write_adapter(server.uploads / "unrequested", "2")
    process = server.process()
    await process.request("requested")
    report = await process.pool.report()
    assert [(adapter["name"], adapter["state"]) for adapter in report["adapters"]] == [
        *(("requested", "loaded"), ("unrequested", "not requested yet")),
    ]
    assert AdaptersResponse.model_validate(report).model_dump(exclude_unset=True) == report
