"""Claims of the documentation that can be checked: commands and options exist, links lead on, blocks parse."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from penstock.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's fenced blocks of a language."""
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def commands(page: Path) -> Iterator[str]:
    """What stands behind ``penstock`` in every command line of a page, in blocks and in running text."""
    text = page.read_text()
    for language, body in FENCE.findall(text):
        if language == "python":
            continue
        joined = re.sub(r" *\\\n\s*", " ", body)
        yield from re.findall(r"^(?:[^#\n]*?[\s'(]|[^#\n]*bin/|)penstock ([a-z][^\n]*)", joined, re.MULTILINE)
    yield from re.findall(r"`(?:[^`]* )?penstock ([^`]+)`", FENCE.sub("", text))


def words_of(command: str) -> list[str]:
    """Words that ``penstock`` would get: no comment, no pipe; what a shell fills in is left out."""
    command = re.sub(r"\$\([^)]*\)|\$\{[^}\"]*\[@\][^}\"]*\}|\"?\$\{[^}]*\}\"?", "FILLED", command)
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&|;><")
    lexer.whitespace_split = True
    words = []
    try:
        for word in lexer:
            if word and set(word) <= set("&|;><"):
                break
            words.append(word)
    except ValueError:  # the quote that closes belongs to what stands around the command
        words = shlex.split(command.replace("'", "").replace('"', ""), comments=True)
    return [word for word in words if "FILLED" not in word and word != "$@"]


def check_command(command: str) -> None:
    """Fail unless the words name a real command, and options that it has."""
    words = words_of(command)
    at: click.Command = cli
    while isinstance(at, click.Group) and words and not words[0].startswith("-"):
        found = at.get_command(click.Context(at), words[0])
        assert found is not None, f"penstock {command}: there is no {words[0]!r}"
        at, words = found, words[1:]
        default = getattr(at, "default", None)
        if isinstance(at, click.Group) and default and words and words[0] not in {"--help", *at.commands}:
            at = at.commands[default]
    options = {name: p for p in at.params for name in (*p.opts, *p.secondary_opts) if isinstance(p, click.Option)}
    takes_value = False
    for word in words:
        if takes_value:
            takes_value = False
            continue
        if not word.startswith("-"):
            continue
        name, equals, _ = word.partition("=")
        assert name in options or name in ("--help", "-h"), f"penstock {command}: no option {name!r}"
        takes_value = not equals and name in options and not options[name].is_flag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_have_these_options(page: Path) -> None:
    for command in commands(page):
        check_command(command)


def test_commands_are_found_and_wrong_ones_are_told() -> None:
    found = list(commands(ROOT / "docs" / "cluster.md"))
    starts = {tuple(words_of(command)[:2]) for command in found}
    for role in ("coordinator", "server", "worker"):
        assert sum(command.startswith(role + " ") for command in found) >= 5, role
    assert ("cluster", "status") in starts and ("cluster", "stop") in starts
    for wrong in ("trian x", "train x --lable y", "cluster stat", "server --join a:1 --tokn f"):
        with pytest.raises(AssertionError):
            check_command(wrong)
    check_command('server --join "$head:7077" ${resume[@]+"${resume[@]}"} --name "$POD" > log  # --nonsense')


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", page.read_text())):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_parse(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, page.name, "exec", ast.PyCF_ONLY_AST)
    for text in blocks(page, "toml"):
        tomllib.loads(text)
    for unit in blocks(page, "ini"):
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(re.sub(r"\\\n\s*", " ", unit))
        assert parser["Service"]["ExecStart"]
    shell = shutil.which("bash")
    for script in blocks(page, "bash", "sh"):
        if shell:
            subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_manifests_parse() -> None:
    yaml = pytest.importorskip("yaml")
    kinds = [
        part["kind"] for text in blocks(ROOT / "docs" / "cluster.md", "yaml") for part in yaml.safe_load_all(text)
    ]
    assert {"Secret", "Job", "Service", "StatefulSet", "Deployment"} <= set(kinds)


def test_job_files_are_jobs() -> None:
    job = importlib.import_module("penstock.job")
    pipeline = importlib.import_module("penstock.job.pipeline")
    found = 0
    for page in PAGES:
        base: dict[str, object] = {}
        for text in blocks(page, "toml"):
            sections = tomllib.loads(text)
            if "pipeline" in sections:
                base = sections
            if "pipeline" in sections or sections.keys() <= {"aggregates", "views"}:
                # Parts of a pipeline stand on their own further down the page.
                pipeline.PipelineJob.from_dict({**base, **sections}, page.name)
            else:
                job.Job.from_dict(sections, page.name)
            found += 1
    [manifest] = blocks(ROOT / "docs" / "cluster.md", "yaml")
    inner = re.findall(r"job\.toml: \|\n((?:    .*\n)+)", manifest)
    for text in inner:
        job.Job.from_dict(tomllib.loads(text), "manifest")
    assert found >= 2 and len(inner) == 1
