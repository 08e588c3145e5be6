"""CachedText: the tokens that a context has cached. The witness is a plain list, with stand-ins for cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from yarn_gguf.run.cached_text import CachedText, common_prefix, common_prefix_of_lists

CAPACITY = 12
TOKENS = st.lists(st.integers(0, 3), max_size=6)  # few different ones, so that texts have common prefixes


class FakeCells:
    """Cells of a cache: the token at each position.

    is_cuttable: False for recurrent layers, whose state has no earlier version.
    removed: the arguments of the last kv_cache_seq_rm. cleared: calls of kv_cache_clear.
    """

    def __init__(self, is_cuttable: bool = True) -> None:
        self.is_cuttable = is_cuttable
        self.tokens: list[int] = []
        self.removed: tuple[int, int, int] | None = None
        self.cleared = 0

    def kv_cache_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Remove cells from p0 on. Return False if they cannot be cut there or are fewer than p0."""
        self.removed = (seq_id, p0, p1)
        if len(self.tokens) < p0 or (len(self.tokens) > p0 and not self.is_cuttable):
            return False
        del self.tokens[p0:]
        return True

    def kv_cache_clear(self) -> None:
        """Remove all cells."""
        self.tokens.clear()
        self.cleared += 1

    def last_position(self) -> int:
        """Return the last cached position, or -1."""
        return len(self.tokens) - 1

    def decode(self, tokens: list[int]) -> None:
        """Fill cells with `tokens`, as the library does."""
        self.tokens += tokens


def text_of(tokens: list[int], drafts: int = 0, is_cuttable: bool = True) -> tuple[CachedText, FakeCells]:
    """Return a text of `tokens` that was just read, and its cells."""
    cells = FakeCells(is_cuttable)
    text = CachedText(cells, CAPACITY)
    cells.decode(tokens)
    text.extend(tokens, drafts)
    return text, cells


class CachedTextMachine(RuleBasedStateMachine):
    """Everything that a Llama does to a CachedText, in any order, beside a plain list.

    tokens: the text. certain: its tokens that are no drafts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.certain = 0
        self.has_logits = False
        self.has_scores = True

    @initialize(is_cuttable=st.booleans())
    def open(self, is_cuttable: bool) -> None:
        self.cells = FakeCells(is_cuttable)
        self.text = CachedText(self.cells, CAPACITY)

    def keep(self, length: int) -> None:
        """Cut the list."""
        self.has_logits = self.has_logits and length == len(self.tokens)
        del self.tokens[length:]
        self.certain = min(self.certain, length)

    @rule(tokens=TOKENS, data=st.data())
    def read(self, tokens: list[int], data: st.DataObject) -> None:
        """Read as Reader does: settle the cells, read lost tokens again, then read `tokens`."""
        can_go_on = len(self.cells.tokens) == len(self.tokens) or (
            self.cells.is_cuttable and len(self.cells.tokens) > len(self.tokens)
        )
        again = self.text.cut_or_forget()
        if can_go_on:
            assert again == []
        else:
            assert again == self.tokens
            self.keep(0)
        assert self.cells.tokens == self.text.tokens.tolist() == self.tokens
        whole = [*again, *tokens][: CAPACITY - len(self.tokens)]
        if not whole:
            return
        drafts = data.draw(st.integers(0, len(whole)))
        self.cells.decode(whole)
        self.text.extend(whole, drafts)
        if self.certain == len(self.tokens):
            self.certain += len(whole) - drafts
        self.tokens += whole
        self.has_logits = True

    @rule(more=st.integers(0, CAPACITY))
    def accept(self, more: int) -> None:
        self.text.accept(self.certain + more)
        self.certain = min(self.certain + more, len(self.tokens))

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, len(self.tokens)))
        self.text.cut(length)
        self.keep(length)

    @rule()
    def drop_drafts(self) -> None:
        self.text.drop_drafts()
        self.keep(self.certain)

    @rule()
    def forget(self) -> None:
        self.text.forget()
        self.keep(0)
        self.has_scores = True
        assert self.cells.tokens == []

    @rule(tokens=st.lists(st.integers(0, 3), max_size=CAPACITY))
    def restore(self, tokens: list[int]) -> None:
        """Fill cells and buffer from elsewhere, as a session or a saved state does."""
        self.cells.tokens = list(tokens)
        self.text.buffer[: len(tokens)] = tokens
        self.text.restore(len(tokens))
        self.tokens, self.certain, self.has_logits = list(tokens), len(tokens), False

    @rule(lost=st.integers(0, CAPACITY))
    def recount(self, lost: int) -> None:
        """Count again after a failure of the library, which has removed cells."""
        del self.cells.tokens[max(0, len(self.cells.tokens) - lost) :]
        self.text.recount()
        self.keep(min(len(self.tokens), len(self.cells.tokens)))
        self.has_logits = False

    @rule(value=st.booleans())
    def set_has_scores(self, value: bool) -> None:
        self.text.has_scores = self.has_scores = value

    @rule(other=TOKENS, data=st.data())
    def match(self, other: list[int], data: st.DataObject) -> None:
        other = [*self.tokens[: data.draw(st.integers(0, len(self.tokens)))], *other]
        expected = 0
        while expected < min(len(other), len(self.tokens)) and other[expected] == self.tokens[expected]:
            expected += 1
        assert self.text.match(other) == expected

    @precondition(lambda self: len(self.tokens) < CAPACITY)
    @rule()
    def refuse_more_than_fits(self) -> None:
        with pytest.raises(AssertionError, match="more tokens than the context holds"):
            self.text.extend([0] * (CAPACITY - len(self.tokens) + 1))

    @invariant()
    def the_text_is_the_list(self) -> None:
        assert self.text.tokens.tolist() == self.tokens
        assert len(self.text) == len(self.tokens)
        assert (self.text.capacity, self.text.room) == (CAPACITY, CAPACITY - len(self.tokens))

    @invariant()
    def drafts_are_at_the_end(self) -> None:
        assert self.text.certain == self.certain <= len(self.tokens)

    @invariant()
    def logits_are_of_the_last_token(self) -> None:
        assert self.text.has_logits is self.has_logits
        assert self.text.has_scores is self.has_scores


CachedTextMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestCachedText = CachedTextMachine.TestCase


# ---- one fact each --------------------------------------------------------------------------------


def test_a_new_text_is_empty_and_has_room_for_the_context() -> None:
    text = CachedText(FakeCells(), CAPACITY)
    assert (len(text), text.certain, text.room, text.has_logits, text.has_scores) == (0, 0, 12, False, True)


def test_a_text_of_no_context_can_be_forgotten() -> None:
    text = CachedText()
    text.forget()
    assert (len(text), text.room) == (0, 0)


def test_draft_tokens_are_dropped_unless_they_are_accepted() -> None:
    text, _ = text_of([1, 2, 3, 4, 5], drafts=3)
    assert text.certain == 2
    text.accept(4)
    text.drop_drafts()
    assert text.tokens.tolist() == [1, 2, 3, 4]


def test_tokens_after_draft_tokens_are_draft_tokens_too() -> None:
    text, _ = text_of([1, 2, 3], drafts=1)
    text.extend([4])
    text.drop_drafts()
    assert text.tokens.tolist() == [1, 2]


def test_no_more_is_accepted_than_there_is() -> None:
    text, _ = text_of([1, 2, 3], drafts=2)
    text.accept(99)
    assert text.certain == 3


def test_tokens_that_are_certain_stay_certain() -> None:
    text, _ = text_of([1, 2, 3])
    text.accept(1)
    text.drop_drafts()
    assert text.tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("length", "has_logits"), [(3, True), (2, False)])
def test_a_cut_loses_the_logits_unless_it_cuts_nothing(length: int, has_logits: bool) -> None:
    text, _ = text_of([1, 2, 3])
    text.cut(length)
    assert text.has_logits is has_logits


def test_a_cut_leaves_the_cells_until_the_next_tokens_are_read() -> None:
    text, cells = text_of([1, 2, 3])
    text.cut(1)
    assert cells.tokens == [1, 2, 3]
    assert text.cut_or_forget() == []
    assert cells.removed == (-1, 1, -1)  # every sequence, from position 1 to the end
    assert cells.tokens == [1]


@pytest.mark.parametrize("has_scores", [True, False])
def test_a_text_that_cannot_be_cut_is_returned_to_be_read_again(has_scores: bool) -> None:
    text, cells = text_of([1, 2, 3], is_cuttable=False)
    text.cut(2)
    text.has_scores = has_scores
    assert text.cut_or_forget() == [1, 2]
    assert (len(text), cells.tokens, cells.cleared) == (0, [], 1)
    assert text.has_scores is has_scores


def test_a_text_whose_cells_are_lost_is_returned_to_be_read_again() -> None:
    text, cells = text_of([1, 2, 3])
    del cells.tokens[1:]
    assert text.cut_or_forget() == [1, 2, 3]


def test_trimming_reports_a_cache_that_cannot_be_cut_and_keeps_the_text() -> None:
    text, cells = text_of([1, 2, 3], is_cuttable=False)
    assert text.trim()
    text.cut(2)
    assert not text.trim()
    assert (text.tokens.tolist(), cells.tokens) == ([1, 2], [1, 2, 3])


def test_a_forgotten_text_has_no_logits_and_all_scores() -> None:
    text, cells = text_of([1, 2, 3])
    text.has_scores = False
    text.forget()
    assert (len(text), text.certain, text.has_logits, text.has_scores) == (0, 0, False, True)
    assert cells.cleared == 1


def test_a_restored_text_is_certain_and_has_no_logits() -> None:
    text, _ = text_of([1, 2, 3], drafts=3)
    text.buffer[:5] = [7, 8, 9, 10, 11]
    text.restore(4)
    assert (text.tokens.tolist(), text.certain, text.has_logits) == ([7, 8, 9, 10], 4, False)


@pytest.mark.parametrize(("cells_left", "length"), [(0, 0), (2, 2), (3, 3)])
def test_a_recount_keeps_the_tokens_that_have_cells(cells_left: int, length: int) -> None:
    text, cells = text_of([1, 2, 3])
    del cells.tokens[cells_left:]
    text.recount()
    assert (len(text), text.has_logits) == (length, False)


def test_a_recount_does_not_lengthen_a_text_that_was_cut() -> None:
    text, _ = text_of([1, 2, 3])
    text.cut(1)
    text.recount()
    assert text.tokens.tolist() == [1]


def test_tokens_are_a_view_of_the_buffer() -> None:
    text, _ = text_of([1, 2, 3])
    tokens = text.tokens
    text.buffer[0] = 9
    assert tokens.tolist() == [9, 2, 3]


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda text: text.extend([0] * 10), "more tokens than the context holds"),
        (lambda text: text.extend([4], drafts=2), None),
        (lambda text: text.extend([4], drafts=-1), None),
        (lambda text: text.cut(4), "a cut cannot lengthen the text"),
        (lambda text: text.cut(-1), "a cut cannot lengthen the text"),
        (lambda text: text.restore(CAPACITY + 1), None),
        (lambda text: text.restore(-1), None),
    ],
    ids=[
        "too many",
        "too many drafts",
        "negative drafts",
        "lengthening",
        "below 0",
        "too long",
        "below none",
    ],
)
def test_a_misuse_is_an_assertion_and_changes_nothing(misuse, message: str | None) -> None:
    text, _ = text_of([1, 2, 3], drafts=1)
    with pytest.raises(AssertionError, match=message):
        misuse(text)
    assert (text.tokens.tolist(), text.certain, text.has_logits) == ([1, 2, 3], 2, True)


@pytest.mark.parametrize("verb", ["trim", "cut_or_forget", "recount"])
def test_a_text_of_no_context_has_no_cells_to_ask(verb: str) -> None:
    with pytest.raises(AssertionError):
        getattr(CachedText(), verb)()


@pytest.mark.parametrize("prefix", [common_prefix, common_prefix_of_lists])
@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [1], 0), ([1, 2], [], 0), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 5, 3], 1), ([4], [5], 0)],
)
def test_a_common_prefix_ends_where_the_texts_differ(
    prefix, one: list[int], other: list[int], length
) -> None:
    assert prefix(one, other) == length
    assert prefix(other, one) == length


@given(TOKENS, TOKENS, TOKENS)
def test_lists_have_the_common_prefix_of_arrays(common: list[int], one: list[int], other: list[int]) -> None:
    one, other = common + one, common + other
    assert common_prefix_of_lists(one, other) == common_prefix(np.array(one), np.array(other)) >= len(common)
