"""yarn-gguf chat in a real terminal."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from pathlib import Path

from chats import QUICK, TEXT
from terminal import CTRL_C, CTRL_D, TAB, Terminal, session_text

from yarn_gguf.cli.screen.terminal import printable
from yarn_gguf.run.llama import Llama


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


def test_all_commands_in_two_days_of_a_chat(
    chat_model: Path, session: Path, document: Path, tmp_path: Path
) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text(" \n")
    with Terminal("chat", chat_model, *QUICK, "-c", "4096", "--system", "Be brief.") as terminal:
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
        terminal.enter("/etc/passwd is what?")  # not a command
        facts = terminal.enter("/context")
        used = int(re.search(r"context (\d+) of 4,096 tokens", facts)[1])
        assert f"cached {used - 1} tokens; " in facts  # the answer's last token is read with the next text
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
    text = session_text(chat_model, session)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n/etc/passwd is what?")
    assert "novel.txt:\n\n" + TEXT[:6000] + "\n\nWhat was that?<|im_end|>" in text
    assert text.count("What was that?") == 1
    assert "<|im_start|>user\nWhy?<|im_end|>" in text
    with Terminal("chat", chat_model, *QUICK, "--session", session) as terminal:
        terminal.wait_for_prompt()
        assert re.search(r"a chat\.session: 1,\d+ tokens were read before\.", terminal.text)
        assert "of 4,096 tokens | a chat.session" in terminal.text
        terminal.enter("And then?")
        assert "messages 9 " in terminal.enter("/context")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert session_text(chat_model, session).startswith(text)


def test_clear_leaves_the_session_of_the_old_conversation_as_it_is(chat_model: Path, session: Path) -> None:
    other = session.with_name("other.session")
    with Terminal("chat", chat_model, *QUICK, "--session", session) as terminal:
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
    text = session_text(chat_model, other)
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


def test_ctrl_c_stops_reading_and_keeps_the_cached_tokens(
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


def test_ctrl_c_at_the_prompt_clears_the_line(chat_model: Path, session: Path) -> None:
    with Terminal("chat", chat_model, *QUICK, "--session", session) as terminal:
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
    text = session_text(chat_model, session)
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


def test_100_kb_may_be_pasted(chat_model: Path, session: Path) -> None:
    text = (TEXT + TEXT)[:100_000].strip()
    assert len(text.encode()) >= 99_000
    with Terminal("chat", chat_model, *QUICK, "-c", "40000", "--session", session) as terminal:
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
    assert f"<|im_start|>user\nWhat is this? {text}two\nlines<|im_end|>" in session_text(chat_model, session)


def test_a_full_context_is_explained(chat_model: Path, session: Path, document: Path) -> None:
    with Terminal("chat", chat_model, *QUICK, "-c", "512") as terminal:
        terminal.wait_for_prompt()
        said = terminal.enter(f"/load {document}")
        assert re.search(r"would have 1,\d+ tokens, and the context holds 512\.", said)
        assert "Leave, and come back with -c 3072." in said
        terminal.enter("Who are you?")
        said = terminal.enter("word " * 500)
        assert "the context holds 512. /clear begins anew; to go on, /save FILE, leave and come back" in said
        assert "with -c 2048 --session FILE --rebuild, which reads the text again where it has to." in said
        assert "messages 2 " in terminal.enter("/context")
    with Terminal("chat", chat_model, *QUICK[:4], "-c", "256", "--session", session) as terminal:
        terminal.wait_for_prompt()
        assert "The context is full. /clear begins anew" in terminal.enter("Who are you?")
        terminal.enter("/clear")
        assert "messages 0 " in terminal.enter("/context")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_a_kill_in_mid_answer_loses_that_answer_alone(chat_model: Path, session: Path) -> None:
    arguments = ("chat", chat_model, *QUICK[:4], "--session", session)
    with Terminal(*arguments, "-n", "5") as terminal:
        terminal.wait_for_prompt()
        terminal.enter("Name three colours.")
        first = session_text(chat_model, session)
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    with Terminal(*arguments) as terminal:
        terminal.wait_for_prompt()
        terminal.begin("Tell me a very long story of a king.")
        terminal.wait_until(lambda: len(terminal.pieces) > 8)
        terminal.process.kill(signal.SIGKILL)
        terminal.wait_for_end()
    assert session_text(chat_model, session) == first
    with Terminal(*arguments, "-n", "5") as terminal:
        terminal.wait_for_prompt()
        terminal.enter("And three birds?")
        assert "messages 4 " in terminal.enter("/context")
    assert session_text(chat_model, session).startswith(first)


def test_a_small_screen_is_enough(chat_model: Path, session: Path, document: Path) -> None:
    with Terminal("chat", chat_model, *QUICK, "--session", session, columns=40, rows=15) as terminal:
        terminal.wait_for_prompt()
        assert "8,192 tokens | a chat.session" in terminal.lines[-1]
        terminal.enter("Who are you, and what is it that you can do for me?")
        assert "> Who are you, and what is it that you c\nan do for me?" in terminal.text
        assert "tokens saved" in terminal.enter("/context")
        terminal.enter("/help")
        assert "leave, as Ctrl-D does" in " ".join(terminal.text.split())
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0


def test_control_characters_of_an_answer_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9bc\r\n\té") == "a]0;titlebc\n\té"
