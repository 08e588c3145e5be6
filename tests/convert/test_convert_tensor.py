"""Lazy tensors: read in pieces, mapped and stacked."""

from __future__ import annotations

import numpy as np
import pytest

from yarn_gguf.convert.tensor import Tensor, equal, stack


@pytest.mark.parametrize(("groups", "unit"), [(1, 12), (2, 6), (4, 3), (12, 1)])
def test_a_mapped_tensor_is_the_same_in_pieces_as_at_once(groups: int, unit: int) -> None:
    data = np.arange(60, dtype=np.float32).reshape(12, 5)
    tensor = Tensor(data.shape, lambda start, stop: data[start:stop])
    mapped = tensor.map(lambda rows: rows[::-1], groups=groups)
    assert mapped.unit == unit
    whole = np.concatenate([group[::-1] for group in np.split(data, groups)])
    np.testing.assert_array_equal(mapped.load(), whole)
    pieces = [mapped.read(start, start + unit) for start in range(0, 12, unit)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    for other in (1, 2, 3, 4, 6, 12):  # groups that cut across those of the first function
        twice = mapped.map(lambda rows: rows[::-1], groups=other)
        expected = np.concatenate([group[::-1] for group in np.split(whole, other)])
        np.testing.assert_array_equal(twice.load(), expected)
    again = mapped.map(lambda rows: rows[::-1], groups=groups)
    np.testing.assert_array_equal(again.load(), data)
    stacked = stack([tensor, mapped])
    np.testing.assert_array_equal(stacked.read(1, 2)[0], whole)
    assert stacked.shape == (2, 12, 5)


def test_groups_are_mapped_one_by_one_where_all_rows_are_read_together() -> None:
    """GPTQ's weights are read whole, and the rows of each head are reordered."""
    data = np.arange(60, dtype=np.float32).reshape(12, 5)
    tensor = Tensor(data.shape, lambda start, stop: data[start:stop], unit=12)
    mapped = tensor.map(lambda rows: rows[::-1], groups=4)
    assert mapped.unit == 12
    np.testing.assert_array_equal(mapped.load(), np.concatenate([group[::-1] for group in np.split(data, 4)]))


@pytest.mark.parametrize("units", [(1, 4), (3, 2), (12, 5)])
def test_tensors_are_compared_in_rows_that_both_can_read(
    units: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yarn_gguf.convert.tensor._PIECE", 10)
    data = np.arange(60, dtype=np.float32).reshape(12, 5)

    def tensor(data: np.ndarray, unit: int) -> Tensor:
        def read(start: int, stop: int) -> np.ndarray:
            assert start % unit == 0 and (stop % unit == 0 or stop == len(data))
            return data[start:stop]

        return Tensor(data.shape, read, unit)

    one, other = (tensor(data, unit) for unit in units)
    assert equal(one, other)
    changed = data.copy()
    changed[-1, -1] += 1
    assert not equal(one, tensor(changed, units[1]))
