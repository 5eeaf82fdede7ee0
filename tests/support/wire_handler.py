"""What the server of the client tests does: whatever the last message of the user asks it to."""

from __future__ import annotations

import asyncio

from threadloom import FunctionCall, MessageRole, RunContext

CITIES = ("Oslo", "Rome")


async def answer(ctx: RunContext) -> str | None:
    texts = [message.text for message in await ctx.list_messages() if message.role is MessageRole.USER]
    match texts[-1].partition(" ") if texts else ():
        case "echo", _, text:
            ctx.add_usage(prompt_tokens=3, completion_tokens=2)
            return f"You said: {text}"
        case "stream", _, words:
            await _stream(ctx, *words.split())
        case "look", _, _:
            await _look(ctx)
        case "tools", _, _:
            return await _ask_for_tools(ctx)
        case "stand", _, word:
            await _stand(ctx, word)
        case "survive", _, words:
            await _survive(ctx, words.split())
        case "fail", _, word:
            async with ctx.message() as message:
                await message.write(word)
                ctx.fail("rate_limit_exceeded", "The model is tired.")
        case "raise", _, text:
            raise RuntimeError(text)
        case "incomplete", _, word:
            async with ctx.message() as message:
                await message.write(word)
                ctx.incomplete("max_completion_tokens")
    return None


async def _stream(ctx: RunContext, *words: str) -> None:
    async with ctx.message() as message:
        for word in words:
            await message.write(f"{word} ")


async def _look(ctx: RunContext) -> None:
    """Carry out two calls here, in two steps, and then speak."""
    for city in CITIES:
        async with ctx.step([FunctionCall(name="weather", arguments=city)]) as step:
            step.set_output(step.calls[0].id, f"rain in {city}")
    await _stream(ctx, "rain")


async def _ask_for_tools(ctx: RunContext) -> str:
    if not ctx.tool_calls:
        await _stream(ctx, "looking")
        await ctx.call_tools([FunctionCall(name="weather", arguments=f'{{"city":"{city}"}}') for city in CITIES])
    return ", ".join(f"{call.function.arguments}: {call.function.output}" for call in ctx.tool_calls)


async def _stand(ctx: RunContext, *words: str) -> None:
    async with ctx.message() as message:
        for word in words:
            await message.write(f"{word} ")
        await asyncio.Event().wait()


async def _survive(ctx: RunContext, words: list[str]) -> None:
    """Come to an end only if the process that began it is no more."""
    await _stream(ctx, "begun")
    if ctx.attempt == 1:
        await _stand(ctx, *words[:2])
    await _stream(ctx, *words)
