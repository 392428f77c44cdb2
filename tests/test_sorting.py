"""Files of rows, and rows sorted in bounded memory."""

import errno

import numpy as np
import pytest

from moe_core.sorting import RowFile, Sorter, big_endian, different, numbers, order_of, starts


def sorted_rows(folder, rows, key, memory, parts=7):
    sorter = Sorter(folder / "runs", rows.shape[1], key, memory)
    for part in np.array_split(rows, parts):
        sorter.add(part)
    return list(sorter.sorted())


def test_numbers_and_their_bytes_have_one_order():
    found = np.array([0, 1, 255, 256, 2**32, 2**40 - 1])
    rows = big_endian(found, 5)
    assert rows.shape == (6, 5)
    assert rows[3].tolist() == [0, 0, 0, 1, 0]
    assert numbers(rows).tolist() == found.tolist()
    assert [row.tobytes() for row in rows] == sorted(row.tobytes() for row in rows)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_rows_come_back_in_the_order_of_their_bytes(tmp_path, seed, memory):
    draw = np.random.default_rng(seed)
    width, values = int(draw.integers(1, 30)), int(draw.choice([2, 3, 256]))
    rows = draw.integers(0, values, (int(draw.integers(0, 9000)), width)).astype(np.uint8)
    found = b"".join(block.tobytes() for block in sorted_rows(tmp_path, rows, width, memory))
    assert found == b"".join(sorted(row.tobytes() for row in rows))
    assert list(tmp_path.iterdir()) == []


def test_more_runs_than_are_merged_at_once(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (1024 * 70, 3)).astype(np.uint8)
    blocks = sorted_rows(tmp_path, rows, 3, memory=1)
    assert max(map(len, blocks)) <= 64 * 70  # and never much of it at once
    assert b"".join(b.tobytes() for b in blocks) == b"".join(sorted(row.tobytes() for row in rows))


def test_nothing_is_written_where_all_fits(tmp_path):
    sorter = Sorter(tmp_path / "runs", 2, 2, 1 << 20)
    sorter.add(np.array([[2, 1], [1, 2]], np.uint8))
    assert not (tmp_path / "runs").exists()
    assert [block.tolist() for block in sorter.sorted()] == [[[1, 2], [2, 1]]]


def test_rows_of_one_key_stay_in_their_order():
    rows = np.array([[1, 9], [0, 9], [1, 3], [0, 1]], np.uint8)
    assert order_of(rows[:, :1]).tolist() == [1, 3, 0, 2]


def test_where_runs_begin():
    rows = np.array([[1], [1], [2]], np.uint8)
    assert starts(rows, None).tolist() == [True, False, True]
    assert starts(rows, np.array([1], np.uint8)).tolist() == [False, False, True]
    assert starts(rows[:0], None).tolist() == []


def test_different_rows_of_one_key_stay_together():
    blocks = [np.array(part, np.uint8) for part in ([[1, 1], [1, 1]], [[1, 1], [1, 2], [2, 1]], [[2, 1], [2, 2]])]
    assert [rows.tolist() for rows in different(iter(blocks), 1)] == [[[1, 1], [1, 2]], [[2, 1], [2, 2]]]
    assert list(different(iter([]), 1)) == []


def test_rows_of_a_file_by_their_number(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (100_000, 96)).astype(np.uint8)
    file = RowFile(tmp_path / "rows", 96)
    for part in np.array_split(rows, 3):
        file.append(part)
    wanted = np.random.default_rng(1).integers(0, len(rows), 5000)
    assert len(file) == len(rows)
    assert np.array_equal(file.take(wanted), rows[wanted])
    assert np.array_equal(file.take(wanted[:0]), rows[:0])
    assert np.array_equal(file.read(99_990, 100_100), rows[99_990:])


def test_a_file_that_was_cut_short(tmp_path):
    file = RowFile(tmp_path / "rows", 4)
    file.append(np.zeros((10, 4), np.uint8))
    (tmp_path / "rows").write_bytes(b"1234")
    with pytest.raises(OSError, match=r"rows: rows 0 to 10 of 10 are not there"):
        file.read(0, 10)
    with pytest.raises(OSError, match=r"rows: rows 3 to 7 of 10 are not there"):
        file.take(np.array([3, 6]))


def test_a_full_disk_is_named():
    """/dev/full takes no byte."""
    file = RowFile.__new__(RowFile)
    file.path, file.width, file.rows = "/dev/full", 4, 0
    with pytest.raises(OSError, match="No space left on device") as found:
        file.append(np.zeros((10, 4), np.uint8))
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, "/dev/full")
