"""The documentation is true and plain: commands parse, examples run, links and paths exist.

A Python block of a page runs with the blocks before it, in a folder with the files of `folder`. A block that
cannot run there has a comment on the line before it: <!-- not run: the reason -->
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from chat_models import write_chat_model
from libraries import PROSE, ROOT
from pages import Block, Page, anchor
from test_architecture import FLOORS, modules

from yarn_gguf import cli
from yarn_gguf.cli import evaluate

PAGES = [
    Page(path)
    for path in (
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
        *ROOT.glob("docs/*.md"),
    )
]
CODE_PAGES = [*PAGES, Page(ROOT / "cpp_patches" / "README.md")]  # prose of the last is checked by nobody
INDEX = Page(ROOT / "docs" / "README.md")
COMMANDS = [
    *(name for name in cli.COMMANDS if name != "eval"),
    *(f"eval {name}" for name in evaluate.COMMANDS),
]
PARTS = ["## Use it", "## What it promises", "## How it was measured"]
ONE_PART = {"docs/README.md", "docs/architecture.md"}  # an index and a map
MOST_WORDS, MOST_CHARACTERS = 30, 200
UNCLEAR = re.compile(r"(?:^|[.!?:]\s+)[\"(]?(Of|What|As|Those)\b")
HTTP = re.compile(r"https?://\S+")
PATH = re.compile(
    r"(?<![\w./-])(?:\.ci|benchmarks|convert|cpp_patches|docs|examples|tests|yarn_gguf)/[\w*./-]*[\w*/]"
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
code_pages = pytest.mark.parametrize("page", CODE_PAGES, ids=lambda page: page.name)


# ---- commands --------------------------------------------------------------------------------


def parse(arguments: list[str]) -> str:
    """Return what the argument parser complains of, or prints as help."""
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        contextlib.suppress(SystemExit),
    ):
        cli._parser().parse_args(arguments)
    return output.getvalue()


@cache
def help_of(command: str) -> str:
    """Return the help of a subcommand."""
    return parse([*command.split(), "--help"])


def commands_of(block: Block) -> list[list[str]]:
    """Return the arguments of each yarn-gguf command in a block, without the shell's redirections."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        _, is_command, rest = line.split("# ")[0].partition("yarn-gguf ")
        if is_command:
            words = shlex.split(rest)
            end = next((i for i, word in enumerate(words) if word in ("<", ">", "|", "&&")), len(words))
            found.append(words[:end])
    return found


@code_pages
def test_every_command_in_a_block_parses(page: Page) -> None:
    commands = [each for block in page.blocks if block.language != "python" for each in commands_of(block)]
    wrong = {" ".join(command): said for command in commands if (said := parse(command))}
    assert not wrong


@code_pages
def test_every_command_in_a_sentence_has_its_options(page: Page) -> None:
    """Such a command may leave out what it needs: `yarn-gguf run --session FILE`."""
    for piece in page.inline:
        if not piece.startswith("yarn-gguf "):
            continue
        words = piece.split()[1:]
        name = " ".join(words[:2]) if words[0] == "eval" and len(words) > 1 else words[0]
        assert name == "eval" or name in COMMANDS, f"{piece}: there is no such command"
        for option in words:
            pattern = rf"(?<![\w-]){re.escape(option)}(?![\w-])"
            assert not option.startswith("-") or re.search(pattern, help_of(name)), f"{piece}: no {option}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_has_its_page(command: str) -> None:
    """The index has a row for it, and the page that this row names shows the command at work."""
    rows = [line.text for line in INDEX.lines if line.text.startswith(f"| `yarn-gguf {command}` |")]
    assert len(rows) == 1, f"docs/README.md has {len(rows)} rows for yarn-gguf {command}"
    (target,) = re.findall(r"\]\(([^)]+)\)", rows[0])
    shown = [" ".join(words) for block in Page(ROOT / "docs" / target).blocks for words in commands_of(block)]
    assert any(words.startswith(f"{command} ") for words in shown), f"{target} shows no {command}"


@code_pages
def test_every_make_target_exists(page: Page) -> None:
    makefile = (ROOT / "Makefile").read_text()
    texts = [*page.inline, *(line for block in page.blocks for line in block.text.splitlines())]
    targets = {name for text in texts for name in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)(?:$|\s)", text)}
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


# ---- Python ----------------------------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def python_blocks(page: Page) -> list[Block]:
    return [block for block in page.blocks if block.language == "python"]


def is_run(block: Block) -> bool:
    return not re.fullmatch(r"not run: \S.*", block.comment)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Small random models that talk, made for 8192 tokens, by the names that the examples give them."""
    model = tmp_path_factory.mktemp("models") / "model.gguf"
    write_chat_model(model, model, template=TEMPLATE, has_pieces=True, layers=1)
    return dict.fromkeys(("model.gguf", "llama-3-8b.gguf"), model)


@pytest.fixture
def folder(tmp_path, monkeypatch, models) -> Path:
    """The working folder of an example: models and a text of 16,384 tokens or more."""
    for name, path in models.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "book.txt").write_text(PROSE.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_as_it_stands(page: Page, folder: Path, capsys) -> None:
    namespace: dict[str, object] = {"__name__": page.name}
    try:
        for block in filter(is_run, python_blocks(page)):
            exec(compile("\n" * block.line + block.text, page.path, "exec"), namespace)
    finally:
        for value in namespace.values():
            if hasattr(value, "close") and not isinstance(value, type):
                value.close()


@code_pages
def test_every_import_of_an_example_exists(page: Page) -> None:
    """Also in examples that are not run."""
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("yarn_gguf"):
                for alias in node.names:
                    assert exists(f"{node.module}.{alias.name}"), f"line {block.line}: {alias.name}"


@code_pages
def test_every_python_name_in_a_sentence_exists(page: Page) -> None:
    names = {name for piece in page.inline for name in re.findall(r"\byarn_gguf(?:\.\w+)+", piece)}
    assert [name for name in names if not exists(name) and not is_key(name)] == []


@code_pages
def test_every_member_in_a_sentence_exists(page: Page) -> None:
    """`Llama.cancel`, for each class of ours."""
    members = {found for piece in page.inline for found in re.findall(r"^([A-Z]\w+)\.(\w+)", piece)}
    classes = our_classes()
    assert [f"{kind}.{name}" for kind, name in members if kind in classes and name not in classes[kind]] == []


@cache
def our_classes() -> dict[str, set[str]]:
    """Return the names of methods, fields and attributes by the name of the class, with inherited ones."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                words = set(
                    re.findall(r"^(?:    def |        self\.|    )(\w+)", ast.unparse(node), re.MULTILINE)
                )
                inherited = dir(getattr(importlib.import_module(name), node.name, object))
                found.setdefault(node.name, set()).update(words, inherited)
    return found


def exists(name: str) -> bool:
    """Whether a module, or a name in one, can be imported."""
    package, _, last = name.rpartition(".")
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(name):
            return True
    with contextlib.suppress(ModuleNotFoundError):
        return hasattr(importlib.import_module(package), last)
    return "." in package and exists(package) and hasattr(importlib.import_module(package), last)


def is_key(name: str) -> bool:
    """Whether the package writes a key of this name into GGUF files."""
    return any(f'"{name}"' in path.read_text(encoding="utf-8") for path in ROOT.glob("yarn_gguf/*/*.py"))


# ---- links, paths, the index -----------------------------------------------------------------


@code_pages
def test_every_link_leads_somewhere(page: Page) -> None:
    for link in page.links:
        if HTTP.match(link):
            continue
        name, _, part = link.partition("#")
        target = page.path.parent / name if name else page.path
        assert target.exists(), link
        assert not part or part in map(anchor, Page(target).headings), link


@code_pages
def test_every_path_of_the_repository_exists(page: Page) -> None:
    paths = set(PATH.findall(HTTP.sub("", page.text)))
    assert sorted(path for path in paths if not list(ROOT.glob(path.rstrip("/")))) == []


def test_the_map_names_every_package_and_the_floors_in_order() -> None:
    page = Page(ROOT / "docs" / "architecture.md")
    packages = [
        path.parent for folder in ("yarn_gguf", "convert") for path in ROOT.glob(f"{folder}/**/__init__.py")
    ]
    named = {piece.rstrip("/") for piece in page.inline}
    assert {path.relative_to(ROOT).as_posix() for path in packages} <= named
    rows = [re.match(r"\| (\d+) \| (.*?) \|", line.text) for line in page.lines]
    floors: dict[int, set[str]] = {}
    for row in filter(None, rows):
        rooms = re.findall(r"`(?:yarn_gguf/)?(\w+)", row[2])
        floors.setdefault(int(row[1]), set()).update(rooms)
    assert floors == {number: set(rooms) for number, rooms in enumerate(FLOORS, 1)}


def test_the_index_names_every_page() -> None:
    missing = {page.path.name for page in PAGES if page.path.parent == INDEX.path.parent} - set(INDEX.links)
    assert missing == {"README.md"}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name.startswith("docs/") and page.name not in ONE_PART],
    ids=lambda page: page.name,
)
def test_every_page_has_the_same_three_parts(page: Page) -> None:
    assert [heading for heading in page.headings if heading.startswith("## ")] == PARTS


@pytest.mark.parametrize(
    ("generator", "page"),
    [
        ("conformance.py", "conformance.md"),
        ("dynamic_archs.py", "dynamic-architectures.md"),
        ("cache_ops.py", "cache-operations.md"),
    ],
)
def test_a_generated_page_has_the_words_of_its_generator(generator: str, page: str) -> None:
    tree = ast.parse((ROOT / "tests" / "helpers" / generator).read_text())
    (words,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_INTRODUCTION"
    ]
    pattern = re.sub(r"\\{[\w:]+\\}", r"\\S+", re.escape(words))
    assert re.match(pattern, (ROOT / "docs" / page).read_text())


# ---- plain English ---------------------------------------------------------------------------


@pages
def test_no_sentence_begins_with_a_word_that_hides_its_subject(page: Page) -> None:
    """Headings may ask: "What runs where?"."""
    assert [f"line {line}: {text}" for line, text in page.sentences() if UNCLEAR.search(text)] == []


@pages
def test_sentences_are_short(page: Page) -> None:
    long = [f"line {line}: {text}" for line, text in page.sentences() if len(text.split()) > MOST_WORDS]
    assert long == []


@pages
def test_lines_of_prose_fit_a_screen(page: Page) -> None:
    assert [
        each.number for each in page.lines if each.kind != "table" and len(each.text) > MOST_CHARACTERS
    ] == []
