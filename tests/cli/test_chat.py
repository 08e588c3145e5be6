"""yarn-gguf chat in a real terminal."""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from chat_models import write_chat_model
from libraries import PROSE, ROOT
from terminal import CTRL_C, CTRL_D, TAB, Terminal, session_text

from yarn_gguf.cli import chat, run
from yarn_gguf.cli.options import model as model_options
from yarn_gguf.cli.screen.terminal import printable
from yarn_gguf.model_file import plan
from yarn_gguf.run.llama import Llama
from yarn_gguf.session.file import read_contents

QUICK = ("-t", "2", "--temp", "0", "-n", "12")
TEXT = PROSE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny(smollm2_path, tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "tiny.gguf", smollm2_path, layers=1)


@pytest.fixture(scope="module")
def small(smollm2_path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "a small.gguf"
    return write_chat_model(path, smollm2_path, layers=1, context=1024)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return tmp_path / "a chat.session"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "novel.txt"
    path.write_text(TEXT[:6000], encoding="utf-8")
    return path


def test_an_answer_streams_and_is_the_models(smollm2_q8: Path) -> None:
    with closing(Llama(smollm2_q8, n_ctx=1024, n_threads=2, flash_attn=True, verbose=False)) as llama:
        messages = [{"role": "user", "content": "Name three colours."}]
        made = llama.create_chat_completion(messages=messages, temperature=0.0, max_tokens=24)
    expected = made["choices"][0]["message"]["content"].split()
    assert len(expected) > 8
    with Terminal("chat", smollm2_q8, *QUICK[:4], "-n", "24") as terminal:
        terminal.wait_for_prompt()
        assert "8,192 tokens. /help lists the commands, Ctrl-D leaves." in " ".join(terminal.text.split())
        answer = terminal.enter("Name three colours.").partition(" Cut off by -n")[0]
        assert answer.split() == expected
        assert sum(any(word in piece for word in expected) for piece in terminal.pieces) > 3
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.text


def test_the_commands_from_a_document_to_the_next_day(
    tiny: Path, session: Path, document: Path, tmp_path: Path
) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text(" \n")
    with Terminal("chat", tiny, *QUICK, "-c", "4096", "--system", "Be brief.") as terminal:
        terminal.wait_for_prompt()
        listed = terminal.enter("/help")
        for command in ("/load FILE", "/context", "/save [FILE]", "/retry", "/clear", "/exit", "Ctrl-C"):
            assert command in listed
        for line, refusal in [
            ("/lod x", "there is no command /lod: did you mean /load?"),
            ("/xyzzy", "/help lists those there are"),
            ("/load", "/load needs a file"),
            (f"/load {tmp_path}/none", "No such file"),
            (f"/load {tmp_path}", "Is a directory"),
            (f"/load {tmp_path}/bytes", "is no UTF-8 text (byte 0)"),
            (f"/load {tmp_path}/empty", "is empty"),
            ("/retry", "nothing yet to answer anew"),
            ("/save", "there is nothing to save yet"),
        ]:
            assert refusal in terminal.enter(line)
        terminal.enter("/etc/passwd is what?")  # no command
        facts = terminal.enter("/context")
        used = int(re.search(r"context (\d+) of 4,096 tokens", facts)[1])
        assert f"cached {used - 1} tokens; " in facts  # the answer's last is read with what comes next
        assert "scaling none" in facts
        assert "messages 3 session none; /save FILE makes one" in facts
        loaded = terminal.enter(f'/load "{document}"')
        assert re.search(r"1,\d+ tokens were read; there is room for 2,\d+ more", loaded)
        assert "a document that waits for your next message" in terminal.enter("/context")
        answer = terminal.enter("What was that?")
        assert terminal.enter("/retry") == f"With --temp 0 the answer will be the same. {answer}"
        assert "exists: name another" in terminal.enter(f"/save {document}")
        assert f"{session.name}: 1," in terminal.enter(f"/save {session}")
        terminal.enter("Why?")
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
    text = session_text(tiny, session)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n/etc/passwd is what?")
    assert "novel.txt:\n\n" + TEXT[:6000] + "\n\nWhat was that?<|im_end|>" in text
    assert text.count("What was that?") == 1
    assert "<|im_start|>user\nWhy?<|im_end|>" in text
    with Terminal("chat", tiny, *QUICK, "--session", session) as terminal:
        terminal.wait_for_prompt()
        assert re.search(r"a chat\.session: 1,\d+ tokens were read before\.", terminal.text)
        assert "of 4,096 tokens | a chat.session" in terminal.text
        terminal.enter("And then?")
        assert "messages 9 " in terminal.enter("/context")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert session_text(tiny, session).startswith(text)


def test_a_new_conversation_may_leave_the_old_ones_session_as_it_is(tiny: Path, session: Path) -> None:
    other = session.with_name("other.session")
    with Terminal("chat", tiny, *QUICK, "--session", session) as terminal:
        terminal.wait_for_prompt()
        terminal.enter("The first of all words.")
        before = session.read_bytes()
        said = terminal.enter("/clear")
        assert "a chat.session keeps the old one until your next message: /save FILE first" in said
        terminal.enter(f"/save {other}")
        terminal.enter("Another beginning.")
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
    assert session.read_bytes() == before
    text = session_text(tiny, other)
    assert "Another beginning." in text
    assert "The first of all words." not in text


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(smollm2_q8: Path, session: Path) -> None:
    with Terminal("chat", smollm2_q8, *QUICK[:4], "--session", session) as terminal:
        terminal.wait_for_prompt()
        terminal.begin("Tell me a very long story of a king.")
        terminal.wait_until(lambda: len(terminal.output.split()) > 8)
        terminal.type(CTRL_C)
        terminal.wait_for_prompt()
        assert "Stopped. The answer stays as far as it came" in terminal.output
        stopped = session_text(smollm2_q8, session)
        assert 3 < len(stopped.split("<|im_start|>assistant\n")[1].split()) < 400
        terminal.begin("Name three colours.")
        terminal.wait_until(lambda: len(terminal.pieces) > 8)
        terminal.type(CTRL_C)
        terminal.wait_for_prompt()
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    turn = "<|im_end|>\n<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n"
    assert session_text(smollm2_q8, session).startswith(stopped + turn)


def test_ctrl_c_stops_reading_and_what_was_read_stays(
    smollm2_q8: Path, tmp_path: Path, session: Path
) -> None:
    (tmp_path / "long.txt").write_text(TEXT[:30000], encoding="utf-8")
    with Terminal("chat", smollm2_q8, *QUICK, "--session", session) as terminal:
        terminal.wait_for_prompt()
        terminal.begin(f"/load {tmp_path}/long.txt")
        bar = r"reading .*\d+/\d+ +[\d.,]+ tokens/s +\d:\d\d:\d\d"
        terminal.wait_until(lambda: re.search(bar, terminal.text))
        terminal.type(CTRL_C)
        terminal.wait_for_prompt()
        assert "Stopped: the document is not part of the conversation." in terminal.output
        facts = terminal.enter("/context")
        assert "context 0 of 8,192 tokens" in facts
        saved = int(re.search(r"([\d,]+) tokens saved", facts)[1].replace(",", ""))
        assert 512 <= saved < 7000
        assert saved % 512 == 0
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_ctrl_c_at_the_prompt_clears_the_line(tiny: Path, session: Path) -> None:
    with Terminal("chat", tiny, *QUICK, "--session", session) as terminal:
        terminal.wait_for_prompt()
        terminal.type("not this")
        terminal.wait_until(lambda: terminal.line == "> not this")
        terminal.type(CTRL_C)
        terminal.wait_until(lambda: terminal.line == ">")
        terminal.settle()
        terminal.type(CTRL_C)
        terminal.wait_until(lambda: "Ctrl-D or /exit leaves." in terminal.text)
        terminal.wait_for_prompt()
        terminal.type("/con" + TAB)
        terminal.wait_until(lambda: terminal.line == "> /context")
        terminal.type(CTRL_C)
        terminal.wait_until(lambda: terminal.line == ">")
        terminal.type("/load docs/cha" + TAB)
        terminal.wait_until(lambda: terminal.line == "> /load docs/chat.md")
        terminal.type(CTRL_C)
        terminal.wait_until(lambda: terminal.line == ">")
        terminal.enter("but this")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    text = session_text(tiny, session)
    assert "<|im_start|>user\nbut this<|im_end|>" in text
    assert "not this" not in text


def test_a_window_may_change_its_size_at_any_time(smollm2_q8: Path, session: Path) -> None:
    with Terminal("chat", smollm2_q8, *QUICK[:4], "-n", "60", "--session", session) as terminal:
        terminal.wait_for_prompt()
        terminal.resize(40, 15)
        begun = "Tell me a very long story, with all that belongs to it,"
        terminal.type(f"{begun} ")
        terminal.wait_until(lambda: f"> {begun[:38]}\n{begun[38:]}" in terminal.text)
        terminal.settle()
        terminal.resize(100, 30)
        terminal.wait_until(lambda: terminal.line == f"> {begun}")
        terminal.begin("of a king, please.")
        terminal.wait_until(lambda: len(terminal.pieces) > 5)
        terminal.resize(40, 15)
        terminal.wait_until(lambda: len(terminal.pieces) > 10)
        terminal.resize(80, 24)
        terminal.wait_for_prompt()
        assert "messages 2 " in terminal.enter("/context")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert f"{begun} of a king, please.<|im_end|>" in session_text(smollm2_q8, session)
    assert "Traceback" not in terminal.text


def test_100_kb_may_be_pasted(tiny: Path, session: Path) -> None:
    text = (TEXT + TEXT)[:100_000].strip()
    assert len(text.encode()) >= 99_000
    with Terminal("chat", tiny, *QUICK, "-c", "40000", "--session", session) as terminal:
        terminal.wait_for_prompt()
        assert "dynamic YaRN extends it" in terminal.text
        terminal.type("What is this? ")
        terminal.paste(text)
        label = f"[paste 1: {text.count(chr(10)) + 1:,} lines, {len(text):,} characters]"
        terminal.wait_until(lambda: terminal.line == f"> What is this? {label}")
        terminal.paste("two\nlines")
        terminal.wait_until(lambda: terminal.line.endswith("lines"))
        terminal.enter("")
        facts = terminal.enter("/context")
        assert re.search(r"context 2\d,\d+ of 40,\d+ tokens", facts)
        scaling = re.search(r"scaling dynamic yarn, s = ([\d.]+) now, from 8,192 tokens on", facts)
        assert 2 < float(scaling[1]) < 4
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert f"<|im_start|>user\nWhat is this? {text}two\nlines<|im_end|>" in session_text(tiny, session)


def test_a_full_context_is_explained(tiny: Path, session: Path, document: Path) -> None:
    with Terminal("chat", tiny, *QUICK, "-c", "512") as terminal:
        terminal.wait_for_prompt()
        said = terminal.enter(f"/load {document}")
        assert re.search(r"would have 1,\d+ tokens, and the context holds 512\.", said)
        assert "Leave, and come back with -c 3072." in said
        terminal.enter("Who are you?")
        said = terminal.enter("word " * 500)
        assert "the context holds 512. /clear begins anew; to go on, /save FILE, leave and come back" in said
        assert "with -c 2048 --session FILE --rebuild, which reads the text again where it has to." in said
        assert "messages 2 " in terminal.enter("/context")
    with Terminal("chat", tiny, *QUICK[:4], "-c", "256", "--session", session) as terminal:
        terminal.wait_for_prompt()
        assert "The context is full. /clear begins anew" in terminal.enter("Who are you?")
        terminal.enter("/clear")
        assert "messages 0 " in terminal.enter("/context")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_a_kill_in_mid_answer_loses_that_answer_alone(tiny: Path, session: Path) -> None:
    arguments = ("chat", tiny, *QUICK[:4], "--session", session)
    with Terminal(*arguments, "-n", "5") as terminal:
        terminal.wait_for_prompt()
        terminal.enter("Name three colours.")
        first = session_text(tiny, session)
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    with Terminal(*arguments) as terminal:
        terminal.wait_for_prompt()
        terminal.begin("Tell me a very long story of a king.")
        terminal.wait_until(lambda: len(terminal.pieces) > 8)
        terminal.process.kill(signal.SIGKILL)
        terminal.wait_for_end()
    assert session_text(tiny, session) == first
    with Terminal(*arguments, "-n", "5") as terminal:
        terminal.wait_for_prompt()
        terminal.enter("And three birds?")
        assert "messages 4 " in terminal.enter("/context")
    assert session_text(tiny, session).startswith(first)


def test_a_small_screen_is_enough(tiny: Path, session: Path, document: Path) -> None:
    with Terminal("chat", tiny, *QUICK, "--session", session, columns=40, rows=15) as terminal:
        terminal.wait_for_prompt()
        assert "8,192 tokens | a chat.session" in terminal.lines[-1]
        terminal.enter("Who are you, and what is it that you can do for me?")
        assert "> Who are you, and what is it that you c\nan do for me?" in terminal.text
        assert "tokens saved" in terminal.enter("/context")
        terminal.enter("/help")
        assert "leave, as Ctrl-D does" in " ".join(terminal.text.split())
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


# ---- without a terminal ---------------------------------------------------------------------------


def piped(text: str | bytes, *arguments: object) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "yarn_gguf", "chat", *map(str, arguments)]
    data = text.encode() if isinstance(text, str) else text
    return subprocess.run(line, input=data, capture_output=True, cwd=ROOT)


def test_lines_of_a_pipe_are_answered_one_by_one(tiny: Path, session: Path, document: Path) -> None:
    done = piped(f"Who are you?\n\n/load {document}\nWhy?", tiny, *QUICK, "--session", session)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.decode().splitlines()
    assert [len(answer.split()) for answer in answers] == [12, 12]
    assert b"\x1b" not in done.stdout + done.stderr
    text = session_text(tiny, session)
    for answer in answers:
        assert f"<|im_start|>assistant\n{answer}" in text
    again = piped("And then?", tiny, *QUICK, "--session", session)
    assert session_text(tiny, session).startswith(text)
    assert again.returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/load none.txt\nWhy?", "none.txt: No such file or directory"),
        ("/lode x\nWhy?", "there is no command /lode: did you mean /load?"),
        (b"\xff\nWhy?", "line 1 of standard input is no UTF-8 text"),
        ("word " * 600, "the context holds 512. Leave, and come back with -c 2048."),
    ],
)
def test_an_error_in_a_pipe_ends_it(tiny: Path, text: str | bytes, message: str) -> None:
    done = piped(text, tiny, *QUICK, "-c", "512")
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def run_command(*arguments: object) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "yarn_gguf", "run", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def test_run_and_chat_take_turns_at_a_session(tiny: Path, session: Path, document: Path) -> None:
    arguments = (tiny, *QUICK, "--session", session)
    assert (
        run_command(*arguments, "-p", "Who are you?", "--system", "Be brief.", "-c", "4096").returncode == 0
    )
    assert piped("Why?", *arguments, "--system", "Be long.").returncode == 0
    assert run_command(*arguments, "-p", "And then?").returncode == 0
    done = piped("/context\nWhat else?\n/load " + str(document), *arguments)
    assert done.returncode == 0, done.stderr
    assert b"messages  0, after what was said before this chat" in done.stderr
    text = session_text(tiny, session)
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
    assert words == ["chat", str(tiny), "--session", str(session)]
    assert piped("What was that?", *arguments).returncode == 0
    assert run_command(*arguments, "-p", "Why?").returncode == 0


SCALINGS = [(("--dynamic", "request"), "request"), (("--rope-scaling", "yarn"), None), ((), "growth")]


@pytest.mark.parametrize(("options", "policy"), SCALINGS, ids=str)
def test_a_session_is_gone_on_with_under_its_own_scaling(small: Path, session: Path, options, policy) -> None:
    arguments = (small, *QUICK, "--session", session)
    assert piped("Who are you?", *arguments, *options, "-c", "2048").returncode == 0
    scaling = read_contents(session).identity["rope scaling"]
    assert (scaling["method"], scaling.get("policy")) == ("yarn", policy)
    done = run_command(*arguments, "-p", "Why?")
    assert (done.returncode, done.stderr) == (0, "")
    done = piped("And then?", *arguments)
    assert (done.returncode, b"warning" in done.stderr) == (0, False)
    assert read_contents(session).identity["rope scaling"] == scaling
    assert session_text(small, session).count("<|im_start|>user") == 3
    other = run_command(*arguments, "-p", "Why?", "--rope-scaling", "linear")
    assert other.returncode == 1
    assert "and not method linear" in other.stderr


@pytest.mark.parametrize("options", [(), ("--rope-scaling", "yarn")], ids=str)
def test_a_session_that_its_scaling_is_too_small_for_is_gone_on_with_or_mended(
    small: Path, session: Path, options
) -> None:
    """Read beyond the model's context without a scaling, or with a static one that was made for less."""
    arguments = (small, *QUICK, "--session", session)
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
def test_a_larger_context_and_rebuild_extend_a_session_as_it_was_extended(
    small: Path, session: Path, command
) -> None:
    arguments = (small, *QUICK, "--session", session)
    assert piped("Who are you?", *arguments, "--rope-scaling", "linear", "-c", "2048").returncode == 0
    more = ("-c", "4096", "--rebuild")
    if command == "run":
        done = run_command(*arguments, *more, "-p", "Why?")
    else:
        done = piped("Why?", *arguments, *more)
    assert (done.returncode, "warning" in str(done.stderr)) == (0, False)
    scaling = read_contents(session).identity["rope scaling"]
    assert (scaling["method"], scaling["factor"]) == ("linear", 4)


def test_a_session_of_another_model_brings_no_scaling(small: Path, tiny: Path, session: Path) -> None:
    arguments = ("--session", session, *QUICK)
    assert piped("Who are you?", small, *arguments, "--rope-scaling", "linear", "-c", "2048").returncode == 0
    assert b"saved by another model" in piped("Why?", tiny, *arguments).stderr
    assert piped("Why?", tiny, *arguments, "--rebuild").returncode == 0
    assert read_contents(session).identity["rope scaling"] == {}


def test_what_a_full_context_asks_for_does_what_it_says(small: Path, tmp_path: Path, document: Path) -> None:
    """With a document that is too long from the start, and in a conversation with and without a session."""

    def remedy(lines: str, *options: object) -> list[str]:
        done = piped(lines, small, *QUICK, *options)
        assert done.returncode == 1
        said = " ".join(done.stderr.decode().split())
        return shlex.split(re.search(r"back with (-c \d+[^.,]*(?:\.session[^.,]*)?)", said)[1])

    def goes_on(options: list[str], messages: int) -> None:
        done = piped(f"/load {document}\nWhy?\n/context", small, *QUICK, *options)
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


@pytest.mark.parametrize("options", [("--raw",), ("--session",)])
def test_a_system_prompt_that_comes_too_late_is_refused_by_run(tiny: Path, session: Path, options) -> None:
    if "--session" in options:
        options = ("--session", session)
        assert run_command(tiny, *QUICK, *options, "-p", "Who are you?").returncode == 0
    done = run_command(tiny, *QUICK, *options, "-p", "Why?", "--system", "Be brief.")
    assert done.returncode == 1
    assert "--system is the first message of a chat" in done.stderr


def test_what_a_model_says_does_not_steer_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9bc\r\n\té") == "a]0;titlebc\n\té"


# ---- the context that nobody asked for -------------------------------------------------------------


def options(model: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    chat.configure(parser)
    return parser.parse_args([str(model), *more])


def test_the_context_is_what_the_model_is_made_for_as_far_as_it_fits(tiny: Path, monkeypatch) -> None:
    assert chat.default_context(options(tiny)) == 8192
    assert chat.default_context(options(tiny, "--dynamic")) == 4 * 8192
    fitting = plan.plan(tiny, 20000, gpu_layers=0, kv_types=("f16",), swa_full=True).layouts[0]
    set_memory(monkeypatch, plan.RESERVE + fitting.use.ram)
    assert 19800 < chat.default_context(options(tiny, "--dynamic")) < 20480
    set_memory(monkeypatch, plan.RESERVE)
    assert chat.default_context(options(tiny, "--dynamic")) == 8192  # come what may


def set_memory(monkeypatch, ram: int) -> None:
    for place in ("native.memory", "model_file.plan"):
        monkeypatch.setattr(f"yarn_gguf.{place}.machine_memory", lambda: (ram, 0))


def test_run_and_chat_take_the_same_options_of_a_model() -> None:
    def names(command) -> set[str]:
        parser = argparse.ArgumentParser()
        command.configure(parser)
        return {option for action in parser._actions for option in action.option_strings}

    shared = argparse.ArgumentParser()
    model_options.configure(shared, context="", temp=0.0, seed=0)
    options = {option for action in shared._actions for option in action.option_strings}
    assert options | {"-n"} <= names(run) & names(chat)
    assert {"-c", "--temp", "--top-p", "--min-p", "--session", "--rebuild", "--system"} <= options
