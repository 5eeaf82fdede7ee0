"""The wire is tried with the very clients that are named, none with another one's parts."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.wire.official_clients import MAJORS, NODE, node_client, python_client

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("major", MAJORS)
def test_a_python_client_has_the_version_that_is_pinned(major):
    [pin] = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][f"client-{major}"]
    show = "import openai; print(f'openai=={openai.__version__}')"
    shown = subprocess.check_output([sys.executable, "-c", show], env=python_client(major), text=True)
    assert shown.strip() == pin
    assert pin.startswith(f"openai=={major}.")


def test_the_node_client_has_the_version_that_is_pinned_and_the_node_that_it_asks_for():
    pin = json.loads((ROOT / "tests" / "wire" / "node" / "package.json").read_text())["dependencies"]["openai"]
    show = "require('openai'); console.log(JSON.stringify([require.resolve('openai'), process.versions.node]))"
    place, node = json.loads(subprocess.check_output([NODE, "-e", show], env=node_client(), text=True))
    package = json.loads((Path(place).parent / "package.json").read_text())
    assert package["version"] == pin
    assert package["engines"]["node"].startswith(">=")
    assert int(node.split(".")[0]) >= int(package["engines"]["node"].removeprefix(">=").split(".")[0])
