"""Rows of a batch from memory and from disk, and what is read ahead."""

import threading

import pytest
import torch
from test_pairs import on_disk, toy_pairs

from fusemix_lite import FuseMixLiteError, fit, taking, training
from fusemix_lite.rows import StoredRows
from fusemix_lite.training import ShuffledBatches

QUICK = {"steps": 20, "batch_size": 8, "shared_dim": 5, "progress": False}


@pytest.fixture
def stored(tmp_path):
    pairs = toy_pairs(12)
    return pairs, on_disk(pairs, tmp_path)


def test_rows_are_taken_into_memory_that_is_kept():
    z = torch.randn(30, 4)
    take = taking.taking(z)
    rows = torch.tensor([3, 29, 3, 0])
    first = take(rows)
    assert first.equal(z[rows])
    second = take(rows[:2] + 0)
    assert second.equal(z[rows[:2]]) and second.data_ptr() == first.data_ptr()  # fewer rows fit as well
    assert take(torch.arange(20)).equal(z[:20])  # more rows find room
    take.ahead(rows)
    assert take(rows).equal(z[rows])


def test_what_was_told_of_is_read_in_another_thread(stored, monkeypatch):
    pairs, of_files = stored
    threads, read = [], StoredRows.index_select

    def noted(self, dim, index):
        threads.append(threading.current_thread() is threading.main_thread())
        return read(self, dim, index)

    monkeypatch.setattr(StoredRows, "index_select", noted)
    take, rows = taking.taking(of_files.y), torch.tensor([5, 0, 59])
    assert take(rows).equal(pairs.y[rows]) and threads == [True]
    take.ahead(rows)
    assert take(rows).equal(pairs.y[rows]) and threads == [True, False]
    take.ahead(rows)
    assert take(rows[:2]).equal(pairs.y[rows[:2]]) and threads == [True, False, False]  # a step without mixing
    take.ahead(rows)
    other = torch.tensor([5, 1])
    assert take(other).equal(pairs.y[other]) and take(rows).equal(pairs.y[rows])  # told otherwise: what is asked for counts


def test_an_error_while_reading_ahead_comes_when_it_is_asked_for(stored, monkeypatch):
    take, rows = taking.taking(stored[1].x), torch.tensor([1, 2])

    def fails(*_):
        raise FuseMixLiteError("it was cut")

    monkeypatch.setattr(StoredRows, "index_select", fails)
    take.ahead(rows)
    with pytest.raises(FuseMixLiteError, match="it was cut"):
        take(rows)


@pytest.mark.parametrize("more", [{}, {"mix_probability": 0.5}, {"augment": "none"}, {"dropout": 0.5, "standardize": True}])
def test_a_run_from_disk_is_that_from_memory_to_the_bit(stored, more):
    memory, disk = (fit(pairs, **QUICK | more) for pairs in stored)
    assert [entry["loss"] for entry in memory.history] == [entry["loss"] for entry in disk.history]
    assert all(a.equal(b) for a, b in zip(memory.model.state_dict().values(), disk.model.state_dict().values(), strict=True))


def test_nearly_all_batches_of_a_run_are_read_ahead(stored, monkeypatch):
    """But the first of each epoch: its order is not drawn before its time, or the draws of mixing would change."""
    mine, read = [], StoredRows.index_select
    monkeypatch.setattr(training, "stamp", lambda pairs: "")

    def noted(self, dim, index):
        mine.append(threading.current_thread() is threading.main_thread())
        return read(self, dim, index)

    monkeypatch.setattr(StoredRows, "index_select", noted)
    fit(stored[1], **QUICK)  # 3 batches an epoch of 60 rows
    assert mine.count(True) == 2 * 7 and mine.count(False) == 2 * 13


def test_the_next_batch_is_known_within_an_epoch_only():
    batches = ShuffledBatches(7, 2, torch.Generator().manual_seed(0))
    assert batches.upcoming is None
    for _ in range(3):
        next(batches)
        for _ in range(2):
            upcoming = batches.upcoming
            assert next(batches).equal(upcoming)
        assert batches.upcoming is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_rows_on_a_gpu(stored):
    pairs, of_files = stored
    take, rows = taking.taking(of_files.x.to("cuda")), torch.tensor([3, 1], device="cuda")
    take.ahead(rows)
    assert take(rows).cpu().equal(pairs.x[rows.cpu()])
