"""yarn-gguf chat and run on one session: their turns, its scaling, and remedies for a full context."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from chats import QUICK, piped, run_command
from terminal import session_text

from yarn_gguf.session.file import read_contents

SCALINGS = [(("--dynamic", "request"), "request"), (("--rope-scaling", "yarn"), None), ((), "growth")]


def test_run_and_chat_take_turns_at_a_session(chat_model: Path, session: Path, document: Path) -> None:
    arguments = (chat_model, *QUICK, "--session", session)
    assert (
        run_command(*arguments, "-p", "Who are you?", "--system", "Be brief.", "-c", "4096").returncode == 0
    )
    assert piped("Why?", *arguments, "--system", "Be long.").returncode == 0
    assert run_command(*arguments, "-p", "And then?").returncode == 0
    done = piped("/context\nWhat else?\n/load " + str(document), *arguments)
    assert done.returncode == 0, done.stderr
    assert b"messages  7 " in done.stderr
    text = session_text(chat_model, session)
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n"
    )
    said = [
        text.index(f"<|im_end|>\n<|im_start|>user\n{each}") for each in ("Why?", "And then?", "What else?")
    ]
    assert said == sorted(said)
    refused = run_command(*arguments, "-p", "What was that?")
    assert refused.returncode == 1
    assert "has no question yet: go on with yarn-gguf chat" in refused.stderr
    words = shlex.split(refused.stderr.partition("go on with yarn-gguf ")[2])
    assert words == ["chat", str(chat_model), "--session", str(session)]
    assert piped("What was that?", *arguments).returncode == 0
    assert run_command(*arguments, "-p", "Why?").returncode == 0


@pytest.mark.parametrize(("options", "policy"), SCALINGS, ids=str)
def test_a_session_goes_on_under_its_own_scaling(
    short_chat_model: Path, session: Path, options, policy
) -> None:
    arguments = (short_chat_model, *QUICK, "--session", session)
    assert piped("Who are you?", *arguments, *options, "-c", "2048").returncode == 0
    scaling = read_contents(session).identity["rope scaling"]
    assert (scaling["method"], scaling.get("policy")) == ("yarn", policy)
    done = run_command(*arguments, "-p", "Why?")
    assert (done.returncode, done.stderr) == (0, "")
    done = piped("And then?", *arguments)
    assert (done.returncode, b"warning" in done.stderr) == (0, False)
    assert read_contents(session).identity["rope scaling"] == scaling
    assert session_text(short_chat_model, session).count("<|im_start|>user") == 3
    other = run_command(*arguments, "-p", "Why?", "--rope-scaling", "linear")
    assert other.returncode == 1
    assert "and not linear:" in other.stderr


@pytest.mark.parametrize("options", [(), ("--rope-scaling", "yarn")], ids=str)
def test_a_session_beyond_its_scaling_goes_on_or_is_extended(
    short_chat_model: Path, session: Path, options
) -> None:
    """It was read beyond the model's context without a scaling, or under a static one made for less."""
    arguments = (short_chat_model, *QUICK, "--session", session)
    first = run_command(*arguments, "-p", "Who are you?", *options, "-c", "2048")
    assert (first.returncode, "warning" in first.stderr) == (0, not options)
    more = ("-c", "3000") if options else ()

    def warning_and_scaling(*options: object) -> tuple[str, str]:
        done = piped("/context\nWhy?", *arguments, *options)
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stderr.decode().split())
        return re.fullmatch(r"(.*?) ?context [\d,]+ of .* scaling (.*) cached .*", said).groups()

    warning, method = warning_and_scaling(*more)
    assert method == ("yarn, factor 2" if options else "none")
    remedy = re.search(r"is made for \d+; (.*) extends it", warning)[1]
    assert remedy == "--rope-scaling yarn --rebuild"
    refused = piped("/context", *arguments, *more, "--rope-scaling", "yarn")
    assert (refused.returncode, b"--rebuild" in refused.stderr) == (1, True)
    extended = f"yarn, factor {3 if options else 2}"
    assert warning_and_scaling(*more, *shlex.split(remedy)) == ("", extended)
    assert warning_and_scaling() == ("", extended)


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_larger_context_and_rebuild_keep_the_method_of_a_session(
    short_chat_model: Path, session: Path, command
) -> None:
    arguments = (short_chat_model, *QUICK, "--session", session)
    assert piped("Who are you?", *arguments, "--rope-scaling", "linear", "-c", "2048").returncode == 0
    more = ("-c", "4096", "--rebuild")
    if command == "run":
        done = run_command(*arguments, *more, "-p", "Why?")
    else:
        done = piped("Why?", *arguments, *more)
    assert (done.returncode, "warning" in str(done.stderr)) == (0, False)
    scaling = read_contents(session).identity["rope scaling"]
    assert (scaling["method"], scaling["factor"]) == ("linear", 4)


def test_a_session_of_another_model_brings_no_scaling(
    short_chat_model: Path, chat_model: Path, session: Path
) -> None:
    arguments = ("--session", session, *QUICK)
    assert (
        piped(
            "Who are you?", short_chat_model, *arguments, "--rope-scaling", "linear", "-c", "2048"
        ).returncode
        == 0
    )
    assert b"saved by another model" in piped("Why?", chat_model, *arguments).stderr
    assert piped("Why?", chat_model, *arguments, "--rebuild").returncode == 0
    assert read_contents(session).identity["rope scaling"] == {}


def test_the_remedy_for_a_full_context_works(short_chat_model: Path, tmp_path: Path, document: Path) -> None:
    """The context is full of a document at the start, or in a conversation with or without a session."""

    def remedy(lines: str, *options: object) -> list[str]:
        done = piped(lines, short_chat_model, *QUICK, *options)
        assert done.returncode == 1
        said = " ".join(done.stderr.decode().split())
        return shlex.split(re.search(r"back with (-c \d+[^.,]*(?:\.session[^.,]*)?)", said)[1])

    def goes_on(options: list[str], messages: int) -> None:
        done = piped(f"/load {document}\nWhy?\n/context", short_chat_model, *QUICK, *options)
        assert done.returncode == 0, done.stderr
        assert re.search(rf"messages +{messages} ", done.stderr.decode())

    load = f"/load {document}"
    assert remedy(load) == ["-c", "3072"]
    goes_on(["-c", "3072"], 2)
    path = tmp_path / "it's a.session"
    back = remedy(f"Who are you?\n{load}", "--session", path)
    assert back == ["-c", "3072", "--session", str(path), "--rebuild"]
    goes_on(back, 4)
    assert read_contents(path).identity["rope scaling"]["policy"] == "growth"
    saved = tmp_path / "saved"
    back = remedy(f"Who are you?\n/save {saved}\n/load {document}")
    goes_on(back, 4)
