"""`atdata mcp` and `atdata search`: the AppView's questions for language models and for people at a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import answers
import pytest
from answers import ALICE, Network, hop, lens, path, refusal, serving, view
from click import Choice
from click.testing import CliRunner
from mcp import Client, StdioServerParameters, stdio_client
from shard_files import Digit, Labelled

from atdata import AppView
from atdata.appview import Sort
from atdata.cli import cli
from atdata.mcp_server import make_server
from atdata.nsid import DATASET, SAMPLE_SCHEMA

URI = f"at://{ALICE}/{DATASET}/x"
SCHEMA_URI = f"at://{ALICE}/{SAMPLE_SCHEMA}/digit"
SIMPLIFY = lens("simplify", SCHEMA_URI, SCHEMA_URI, "lenses.py:simplify")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """An AppView with one dataset."""
    record = {
        **answers.dataset("digits", SCHEMA_URI),
        "description": "Handwritten. " * 100,
        "tags": ["vision"],
        "license": "MIT",
        "size": {"samples": 60_000, "bytes": 10**7},
    }
    monkeypatch.delenv("ATDATA_APPVIEW", raising=False)
    monkeypatch.setattr("atdata.network._pause", lambda _: None)
    with serving(Network()) as fake:
        shown, schema = view(record), view(answers.schema(Digit), "digit")
        fake.answers = {
            "searchDatasets": {"datasets": [shown] * 1, "total": 1},
            "resolveDataset": {"dataset": shown, "schema": schema},
            "getSchemas": {"schemas": [schema], "notFound": []},
            "resolveSchema": {"schema": schema, "versions": [], "ignored": []},
            "getLensPath": answers.paths(path(hop(Digit, Labelled, SIMPLIFY), hop(Labelled, Labelled))),
            "similarDatasets": {
                "datasets": [view(record, "y", similarity={"sharedTags": ["vision"], "sameStructure": True})]
            },
        }
        yield fake


async def call(fake: Network, tool: str, **arguments: Any) -> Any:
    """What a tool answers to a model, by way of the protocol."""
    async with Client(make_server(AppView(fake.url))) as client:
        return await client.call_tool(tool, arguments)


async def ask(fake: Network, tool: str, **arguments: Any) -> Any:
    result = await call(fake, tool, **arguments)
    assert not result.is_error, result.content
    # Models whose program knows no structured results read the same as text.
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


TOOLS = {"search_datasets", "get_dataset", "get_schema", "find_lens_path", "similar_datasets"}


async def test_the_tools_explain_themselves(fake: Network) -> None:
    """Each says what it does, what it takes and what it gives, and that it changes nothing."""
    async with Client(make_server(AppView(fake.url))) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(listed) == TOOLS
    for name, tool in listed.items():
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is True
        assert tool.description is not None
        for section in ("Args:", "Returns"):
            assert section in tool.description, name
        for parameter in tool.input_schema["properties"]:
            assert f"{parameter}:" in tool.description, (name, parameter)


async def test_searching(fake: Network) -> None:
    """Filters arrive, texts are cut, what is empty is left out."""
    answer = await ask(fake, "search_datasets", query="digits", tags=["vision"], fields=["label:int"], min_samples=5)
    assert fake.asked[0][1] == {
        "q": ["digits"],
        "tags": ["vision"],
        "fields": ["label:int"],
        "minSamples": ["5"],
        "sort": ["relevance"],
        "limit": ["50"],
    }
    (found,) = answer["datasets"]
    assert len(found.pop("description")) == 300
    assert answer["total"] == 1
    assert found == {
        "name": "digits",
        "uri": URI,
        "publisher": "@alice.test",
        "schema": SCHEMA_URI,
        "license": "MIT",
        "tags": ["vision"],
        "samples": 60_000,
        "verified": True,
    }
    fake.answers["searchDatasets"] = {"datasets": [], "total": 0}
    assert "fewer" in (await ask(fake, "search_datasets", query="nothing"))["hint"]


async def test_a_record_of_any_size_is_an_answer_of_some_lines(fake: Network) -> None:
    """A model reads all of it, whatever its publisher wrote."""
    noise = {"tags": ["t" * 1000] * 500, "license": "l" * 100_000, "description": "d" * 500_000}
    hostile = view({**answers.dataset("digits", SCHEMA_URI), **noise})
    fake.answers["searchDatasets"] = {"datasets": [hostile], "total": 1}
    fake.answers["resolveDataset"] = {"dataset": hostile}
    found = await ask(fake, "search_datasets", query="digits")
    assert found["datasets"][0]["tags"][-1] == "and 480 more"
    assert len(json.dumps(found)) < 10_000
    assert len(json.dumps(await ask(fake, "get_dataset", dataset="@alice.test/digits"))) < 50_000


async def test_one_dataset(fake: Network) -> None:
    """By name or URI: in full, with the fields of its samples and the line that loads it."""
    answer = await ask(fake, "get_dataset", dataset="@alice.test/digits")
    assert fake.asked == [("resolveDataset", {"dataset": ["@alice.test/digits"]})]
    assert len(answer["description"]) == 1300
    assert answer["schema"]["fields"] == [
        {"name": "image", "type": "NDArray[uint8]"},
        {"name": "label", "type": "int"},
    ]
    assert (answer["storage"], answer["shards"]) == ("external", 1)
    assert answer["load"] == f"atdata.load_dataset('{URI}', split='train')"


@pytest.mark.parametrize("schema", [SCHEMA_URI, "@alice.test/Digit@>=1.2"])
async def test_one_schema(fake: Network, schema: str) -> None:
    """By URI, or by name and range."""
    answer = await ask(fake, "get_schema", schema=schema)
    assert (answer["name"], answer["version"], answer["uri"]) == ("Digit", "1.0.0", SCHEMA_URI)
    assert answer["fingerprint"] == answers.key(Digit)
    asked = {"uris": [SCHEMA_URI]} if schema == SCHEMA_URI else {"version": [">=1.2"]}
    assert asked.items() <= fake.asked[0][1].items()


async def test_paths_and_neighbours(fake: Network) -> None:
    """Steps with where their code is; what two datasets have in common."""
    answer = await ask(fake, "find_lens_path", source=SCHEMA_URI, target=SCHEMA_URI)
    lens_step, projection = answer["paths"][0]["steps"]
    assert lens_step["code"] == "https://example.com/lenses at abc123: lenses.py:simplify"
    assert set(projection) == {"projection_to"}
    fake.answers["getLensPath"] = answers.paths()
    assert "write one" in (await ask(fake, "find_lens_path", source=SCHEMA_URI, target=SCHEMA_URI))["hint"]
    (similar,) = (await ask(fake, "similar_datasets", dataset="@alice.test/digits", limit=50))["datasets"]
    assert (similar["shared_tags"], similar["same_structure"]) == (["vision"], True)
    assert fake.asked[-1][1] == {"uri": [URI], "limit": ["50"]}


ERRORS = [
    ("get_dataset", {"dataset": "@alice.test/cats"}, refusal(404, "DatasetNotFound", "no cats"), "Try search_datasets"),
    ("get_schema", {"schema": "digits"}, None, "An AT URI is like"),
    ("search_datasets", {}, refusal(429, "RateLimitExceeded"), "Wait a minute"),
    ("search_datasets", {}, refusal(500, "InternalServerError"), "the AppView may be down"),
    ("search_datasets", {"limit": "many"}, None, "search_datasets: limit: Input should be a valid integer"),
    ("search_datasets", {"limit": 0}, None, "limit is from 1 to 50, not 0"),
    ("similar_datasets", {"dataset": "@alice.test/digits", "limit": 51}, None, "limit is from 1 to 50, not 51"),
    ("search_datasets", {"q": "speach"}, None, "takes no argument 'q'; did you mean query? It takes query, tags"),
    ("search_datasets", {"license": "MIT"}, None, "takes no argument 'license'; did you mean licenses?"),
    ("get_dataset", {"uri": URI}, None, "takes no argument 'uri'; did you mean dataset?"),
    ("find_lens_path", {"xyz": 1}, None, "takes no argument 'xyz'. It takes source, target, max_hops"),
    ("get_dataset", {}, None, "get_dataset: dataset is missing. It takes dataset."),
]


@pytest.mark.parametrize(("tool", "arguments", "answer", "problem"), ERRORS)
async def test_errors_are_the_tools_and_say_what_to_try(
    fake: Network, tool: str, arguments: Any, answer: Any, problem: str
) -> None:
    """A model reads them, and goes on."""
    if answer is not None:
        fake.answers = dict.fromkeys(fake.answers, answer)
    result = await call(fake, tool, **arguments)
    assert result.is_error
    said = result.content[0].text
    assert problem in said
    assert "pydantic" not in said
    assert "\n" not in said
    # What was asked for by mistake is not asked of anybody.
    assert answer is not None or not fake.asked


async def test_over_standard_input_and_output(fake: Network) -> None:
    """The command serves a client of the protocol, as programs start it."""
    arguments = ["-m", "atdata", "mcp", "--appview", fake.url]
    async with Client(stdio_client(StdioServerParameters(command=sys.executable, args=arguments))) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        result = await client.call_tool("search_datasets", {"query": "digits"})
    assert result.structured_content is not None
    assert result.structured_content["datasets"][0]["uri"] == URI


def test_without_the_extra_a_sentence_says_what_to_install() -> None:
    """One line, and no traceback."""
    code = "import sys; sys.modules['mcp'] = None; from atdata.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "mcp", "--appview", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("atdata: the MCP server needs the package mcp")
    assert "[mcp]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["mcp", "search"])
def test_without_an_appview_a_sentence_says_what_to_give(command: str) -> None:
    """The flag, and the variable."""
    done = subprocess.run([sys.executable, "-m", "atdata", command], capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.startswith("atdata: which AppView? give --appview URL, or set ATDATA_APPVIEW")


# --- atdata search


def test_searching_in_a_terminal(fake: Network) -> None:
    """A table, with how many there are; what strangers write stays in its cell."""
    shown = fake.answers["searchDatasets"]
    assert isinstance(shown, dict)
    odd = view(answers.dataset("\x1b[2J" + "n" * 99, SCHEMA_URI), "y")
    fake.answers["searchDatasets"] = {"datasets": [*shown["datasets"], odd], "total": 2}
    done = CliRunner().invoke(cli, ["search", "hand", "written", "--appview", fake.url])
    assert done.exit_code == 0, done.output
    assert fake.asked[0][1]["q"] == ["hand written"]
    head, first, second, total = done.output.splitlines()
    assert head.split() == ["NAME", "PUBLISHER", "SAMPLES", "URI"]
    assert first.split() == ["digits", "@alice.test", "60,000", URI]
    assert second.startswith("[2J" + "n" * 28 + "… @alice.test")
    assert "\x1b" not in done.output
    assert total == "2 found"


def test_searching_for_programs(fake: Network) -> None:
    """With `--json`, an object a line, which holds the record."""
    done = CliRunner().invoke(cli, ["search", "--json", "--limit", "1", "--appview", fake.url])
    (found,) = [json.loads(line) for line in done.output.splitlines()]
    assert (found["uri"], found["record"]["license"]) == (URI, "MIT")
    fake.answers["searchDatasets"] = {"datasets": [], "total": 0}
    assert "nothing found" in CliRunner().invoke(cli, ["search", "x", "--appview", fake.url]).output


def test_filters_in_a_terminal(fake: Network) -> None:
    """They arrive as the AppView takes them, those of which it takes several several times."""
    given = ["--tag", "a", "--tag", "b", "--license", "MIT", "--license", "CC0-1.0", "--publisher", "alice.test"]
    given += ["--schema", SCHEMA_URI, "--sort", "newest"]
    assert CliRunner().invoke(cli, ["search", "x", *given, "--appview", fake.url]).exit_code == 0
    assert fake.asked[0][1] == {
        "q": ["x"],
        "tags": ["a", "b"],
        "licenses": ["MIT", "CC0-1.0"],
        "publishers": ["alice.test"],
        "schemas": [SCHEMA_URI],
        "sort": ["newest"],
        "limit": ["50"],
    }
    shown = {"datasets": [view(answers.dataset(), path=path())], "total": 1}
    fake.answers["searchDatasets"] = shown
    done = CliRunner().invoke(cli, ["search", "--loadable-as", SCHEMA_URI, "--appview", fake.url])
    assert (done.exit_code, fake.asked[1][1]["loadableAs"]) == (0, [SCHEMA_URI]), done.output
    (sort,) = [one.type for one in cli.commands["search"].params if one.name == "sort"]
    assert isinstance(sort, Choice)
    assert tuple(sort.choices) == get_args(Sort)
