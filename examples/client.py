"""Talk to ``server.py`` with OpenAI's own client, as code that was written for the Assistants API does.

python examples/client.py [BASE_URL]
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator

from openai import AssistantEventHandler, OpenAI
from openai.types.beta import AssistantToolParam
from openai.types.beta.threads import Run, Text, TextDelta
from openai.types.beta.threads.run_submit_tool_outputs_params import ToolOutput

# OpenAI has switched off its own server for these calls, and says so at each of them.
warnings.filterwarnings("ignore", "deprecated$|The Assistants API is deprecated", DeprecationWarning)

PRICES = {"espresso": "2.10", "latte": "3.40", "mocha": "3.90"}
GET_PRICE: AssistantToolParam = {
    "type": "function",
    "function": {
        "name": "get_price",
        "parameters": {"type": "object", "properties": {"drink": {"type": "string"}}, "required": ["drink"]},
    },
}


class Printer(AssistantEventHandler):
    """Prints the answer while it comes."""

    def on_text_delta(self, delta: TextDelta, snapshot: Text) -> None:  # noqa: ARG002 - the client's signature
        """Print a piece of it."""
        print(delta.value, end="", flush=True)


def use_tools(run: Run) -> Iterator[ToolOutput]:
    """Carry out what the run waits for."""
    for call in run.required_action.submit_tool_outputs.tool_calls if run.required_action else ():
        drink = json.loads(call.function.arguments)["drink"]
        print(f"(asked for the price of one {drink})")
        yield {"tool_call_id": call.id, "output": PRICES.get(drink, "not on the menu")}


def main(base_url: str) -> None:
    """Make an assistant and a thread, ask something, and print the whole conversation."""
    client = OpenAI(base_url=base_url, api_key="none is needed")
    assistant = client.beta.assistants.create(model="any", instructions="Be brief.", tools=[GET_PRICE])
    thread = client.beta.threads.create()
    client.beta.threads.messages.create(thread.id, role="user", content="How much are a latte and a mocha?")

    runs = client.beta.threads.runs
    with runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=Printer()) as stream:
        run = stream.get_final_run()
    while run.status == "requires_action":
        outputs = list(use_tools(run))
        with runs.submit_tool_outputs_stream(
            run_id=run.id, thread_id=thread.id, tool_outputs=outputs, event_handler=Printer()
        ) as stream:
            run = stream.get_final_run()
    print(f"\nThe run is {run.status}.")

    for message in client.beta.threads.messages.list(thread.id, order="asc"):
        print(f"{message.role:>9}: {''.join(block.text.value for block in message.content if block.type == 'text')}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1")
