"""`DisconnectListener`: a client that disconnects at any moment."""

import asyncio

from starlette.types import Message

from vllm_lora_router.server.asgi import DisconnectListener

DISCONNECT: Message = {"type": "http.disconnect"}


async def test_a_disconnect_in_the_iteration_in_which_the_work_ends_reaches_the_application_and_cancels_nothing() -> (
    None
):
    loop = asyncio.get_running_loop()
    work: asyncio.Future[str] = loop.create_future()
    disconnected: asyncio.Future[None] = loop.create_future()

    async def receive() -> Message:
        await disconnected
        return DISCONNECT

    async def serve() -> tuple[str | None, Message]:
        listener = DisconnectListener(receive)

        async def wait_for_work() -> str:
            return await work

        result = await listener.run(wait_for_work())
        await asyncio.sleep(0)  # the application suspends, where a late cancellation would end it
        await asyncio.sleep(0)
        return result, await listener.receive()

    task = asyncio.create_task(serve())
    await asyncio.sleep(0.01)
    # In the next iteration the work ends and then `receive` returns. One iteration later, the task resumes and then the
    # callback of `receive` runs.
    loop.call_soon(work.set_result, "planned")
    disconnected.set_result(None)
    assert await task == ("planned", DISCONNECT)
    assert task.cancelling() == 0
