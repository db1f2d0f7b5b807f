"""The benchmark: every row runs, both of its ways give the same, and what is told and kept is what was measured. No times."""

import json
import re

import pytest
import torch

from fusemix_lite import FuseMixLiteError, bench
from fusemix_lite.bench import (
    ROWS,
    TURNS,
    Case,
    Row,
    amount,
    eliminated,
    keep,
    latents,
    line,
    measure,
    one_by_one,
    sorted_ranks,
)
from fusemix_lite.cli import main
from fusemix_lite.metrics import ranks_from_scores
from tools import fragments


@pytest.fixture
def here(monkeypatch):
    """Rows in this process, at once, runs of a sweep too, and a rate that needs no measuring."""

    def in_processes(jobs, workers, threads):
        return torch.tensor([bench._short_run(*job) for job in jobs])

    monkeypatch.setattr(bench, "_in_processes", in_processes)
    monkeypatch.setattr(bench, "_fitted_together", lambda world, threads, job: bench._one_of_them({}, *job))
    monkeypatch.setattr(bench, "rate", lambda dtype=None: 1e9)
    monkeypatch.setattr(bench, "_own_process", lambda *which: json.loads(json.dumps(bench._child(*which))))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_at_small_sizes(here, name):
    ((told, found),) = measure([name], rounds=2, smoke=True)
    assert told == name and found["limit"] > 0 and found["ours"] is not None
    assert found["met"] is None and found["smoke"]  # nothing is judged by small sizes
    assert json.loads(json.dumps(found)) == found
    assert f"--rows {name}" in found["command"] and "--smoke" in found["command"]
    assert ("agreement" in found) == (found["unit"] in TURNS)
    assert "not judged" in line(name, found) or found["goal"] is None


def test_without_names_the_long_rows_are_left_out(here):
    assert [name for name, _ in measure(rounds=1, smoke=True)] == [name for name, row in ROWS.items() if row.unit != "once"]


def test_plain_ways_are_right():
    generator = torch.Generator().manual_seed(0)
    scores, owner = torch.randn(30, 120, generator=generator), torch.arange(120) % 30
    for way, rank in ranks_from_scores(scores, owner).items():
        assert sorted_ranks(scores, owner)[way].equal(rank)
    z = latents(80, 10, 0)
    assert one_by_one(z, 25).equal(eliminated(z, 25)) and latents(80, 10, 1).ne(z).any()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.unit in TURNS])
def test_two_ways_that_differ_are_no_result(here, monkeypatch, name):
    case = ROWS[name].make(0, True)

    def other():
        result = case.plain()
        if isinstance(result, dict):
            return {way: rank + 1 for way, rank in result.items()}
        return result.flip(0) if isinstance(result, torch.Tensor) else [1.1 * z for z in result]

    monkeypatch.setitem(ROWS, name, ROWS[name]._replace(make=lambda seed, smoke: case._replace(plain=other)))
    with pytest.raises(FuseMixLiteError, match="bench: "):
        list(measure([name], rounds=1, smoke=True))


def row_of(monkeypatch, unit, goal, **case):
    """A row whose clock is told: a call that returns n takes n seconds."""
    monkeypatch.setattr(bench, "_seconds", lambda call: (call(), None))
    monkeypatch.setitem(ROWS, "told", Row("about", "against", "limit", goal, unit, lambda seed, smoke: Case(**case)))


def test_a_ratio_is_the_median_of_pairs(monkeypatch):
    clock = {"ours": iter([1.0, 9.0, 2.0]), "plain": iter([2.0, 10.0, 8.0]), "limit": iter([0.5, 0.9, 1.0])}
    calls = {way: (lambda way=way: next(clock[way])) for way in clock}
    row_of(monkeypatch, "seconds", 0.5, **calls, agree=lambda ours, plain: "same")
    ((_, found),) = measure(["told"], rounds=3)
    assert (found["ours"], found["plain"], found["limit"]) == (2.0, 8.0, 0.9)
    assert found["ratio"] == 0.5 and found["of_limit"] == 0.5  # of 0.5, 0.9, 0.25; of 0.5, 0.1, 0.5
    assert found["met"] is True and "goal: ratio at most 0.5, met" in line("told", found)
    assert found["rounds"] == 3 and found["command"].endswith("--rows told --rounds 3")


def test_a_missed_goal_is_told(monkeypatch):
    row_of(monkeypatch, "seconds", 0.4, ours=lambda: 1.0, plain=lambda: 2.0, limit=lambda: 1.0, agree=lambda *_: "same")
    ((_, found),) = measure(["told"], rounds=1)
    assert found["met"] is False and "MISSED" in line("told", found)


def test_a_share_of_the_limit_is_judged_from_below(monkeypatch):
    calls = {"ours": lambda: 2.0, "plain": lambda: 1.0, "limit": lambda: 1.0, "agree": lambda *_: "same"}
    for goal, met in ((0.5, True), (0.51, False)):
        row_of(monkeypatch, "share", goal, **calls)
        ((_, found),) = measure(["told"], rounds=1)
        assert found["met"] is met and found["judged"] == found["of_limit"] == 0.5 and found["ratio"] == 2.0
        assert f"goal: limit : ours at least {goal}, {'met' if met else 'MISSED'}" in line("told", found)


def test_what_processes_do_is_timed_on_the_wall(monkeypatch):
    """Not by the processor's time of this process, in which it only waits."""
    row_of(monkeypatch, "wall", 0.5, ours=lambda: 9.0, plain=lambda: 9.0, limit=lambda: 1.0, agree=lambda *_: "same")
    monkeypatch.setattr(bench, "_wall_seconds", lambda call: (call() / 9, None))
    ((_, found),) = measure(["told"], rounds=1)
    assert found["ours"] == found["plain"] == 1.0


def test_runs_in_processes_are_those_in_this_one():
    jobs = [(20, 8, 2, seed) for seed in range(2)]
    told = bench._in_processes(jobs, workers=1, threads=2)
    assert told.tolist() == pytest.approx([bench._short_run(*job) for job in jobs], rel=1e-4) and told[0] != told[1]


def test_a_run_that_processes_share_is_that_of_one():
    job = (8, 3, {"image": 6, "text": 4}, 0)
    alone = bench._one_of_them({}, *job)
    assert bench._fitted_together(2, 1, job).tolist() == pytest.approx(alone.tolist(), abs=1e-5)


def test_growth_is_told_as_multiples_of_the_first_size(monkeypatch):
    sizes = [("batch", 1, 2.0, 10), ("batch", 2, 6.0, 20), ("depth", 1, 2.0, 10), ("depth", 4, 4.0, 80)]
    points = [
        {"what": what, "size": size, "seconds": seconds, "bytes": held, "predicted_seconds": size, "predicted_bytes": 10 * size}
        for what, size, seconds, held in sizes
    ]
    monkeypatch.setattr(bench, "_own_process", lambda *which: {"result": points, "limit": 7.0})
    ((_, found),) = measure(["growth"], smoke=True)
    assert [at["seconds_off"] for at in found["growth"]] == [1, 1.5, 1, 0.5]
    assert [at["bytes_off"] for at in found["growth"]] == [1, 1, 1, 2]
    assert (found["ours"], found["of_limit"], found["met"]) == (14.0, 0.5, None)
    assert "| batch | 2 | 6 s | 1.50 | 0.00 MB | 1.00 |" in fragments.grown(found["growth"])


def test_what_is_predicted_of_a_large_batch_is_in_tiles():
    few, many = (bench._predicted(batch, 24, 1) for batch in (1024, 4096))
    assert few.bytes["similarity"] == many.bytes["similarity"] == 8 * 1024**2
    assert many.flops["similarity"] == 16 * 4 / 3 * few.flops["similarity"]


def test_ours_and_plain_take_turns_in_going_first(monkeypatch):
    order = []
    calls = {way: (lambda way=way: order.append(way) or 1.0) for way in ("ours", "plain")}
    row_of(monkeypatch, "seconds", None, **calls, limit=lambda: 1.0, agree=lambda *_: "same")
    list(measure(["told"], rounds=3))
    assert order == ["ours", "plain", "plain", "ours", "ours", "plain"]


def test_a_peak_of_memory_is_that_of_the_call(monkeypatch):
    """A process of its own, with its reading of the machine's books: 64 MB asked for are 64 MB seen."""
    found = bench._own_process("recall-memory", "ours", 0, True)
    assert found["limit"] == 8 * (50 + 260) and found["result"] is None
    held = bench._reset_peak()
    torch.ones(2**24).sum()  # given back at once, and seen all the same
    assert 60e6 < bench._memory("VmHWM") - held < 90e6


def test_a_way_that_dies_in_its_process_is_told(monkeypatch):
    with pytest.raises(FuseMixLiteError, match="bench: recall-memory, nobody: AttributeError"):
        bench._own_process("recall-memory", "nobody", 0, True)


def test_plain_memory_that_was_measured_smaller_is_multiplied(here, monkeypatch):
    sizes = {"ours": 2**20, "plain": 2**26}  # large enough that what the system takes back meanwhile does not show
    calls = {way: (lambda n=n: torch.ones(n).sum()) for way, n in sizes.items()}
    monkeypatch.setitem(ROWS, "told", Row("a", "b", "c", 1e9, "bytes", lambda *_: Case(**calls, limit=lambda: 1e6, times=16)))
    ((_, found),) = measure(["told"])
    assert 16 * 2**28 * 0.8 < found["plain"] < 16 * 2**28 * 1.2 and found["met"] is True


def test_a_rate_is_operations_a_second():
    assert 1e8 < bench.rate(size=128, seconds=0) < 1e15
    assert 1e8 < bench.rate(torch.float64, size=128, seconds=0) < 1e15


def test_bad_arguments():
    with pytest.raises(FuseMixLiteError, match="no row 'nothing'; there are loss"):
        measure(["loss", "nothing"])
    with pytest.raises(FuseMixLiteError, match="rounds = 0"):
        measure(rounds=0)


def test_amounts_as_people_read_them():
    seconds = [amount(value, "seconds") for value in (None, 0.00312, 0.5, 3.21, 214.4)]
    assert seconds == ["–", "3.12 ms", "500 ms", "3.2 s", "214 s"]
    assert [amount(value, "bytes") for value in (13.4e9, 2e6)] == ["13.40 GB", "2.00 MB"]


def test_a_record_keeps_its_other_rows_and_takes_no_small_ones(here, tmp_path):
    path = tmp_path / "speed.json"
    ((_, found),) = measure(["recall"], rounds=1, smoke=True)
    with pytest.raises(FuseMixLiteError, match="no smoke rows"):
        keep(path, "recall", found)
    for name in ("recall", "loss", "recall"):
        keep(path, name, {**found, "smoke": False, "ours": len(name)})
    content = json.loads(path.read_text())
    assert list(content) == ["loss", "recall"] and content["loss"]["ours"] == 4  # in the order of the table


def test_the_machine_is_told_and_not_its_name():
    import platform

    told = bench.setting()
    assert told["threads"] == torch.get_num_threads() and told["torch"] in torch.__version__
    assert not platform.node() or platform.node() not in json.dumps(told)


def test_the_page_shows_what_the_record_holds(here):
    assert "Nothing was measured yet" in fragments.speed({})
    record = {name: {**found, "met": True} for name, found in measure(ROWS, rounds=1, smoke=True)}
    text = fragments.speed(record)
    table = [row.split(" | ") for row in text.splitlines() if row.startswith("| ") and row.count(" | ") == 7][1:]
    assert [cells[0].removeprefix("| ") for cells in table] == [row.about for row in ROWS.values()]
    for cells, found in zip(table, record.values(), strict=True):
        assert cells[1] == amount(found["ours"], "bytes" if found["unit"] == "bytes" else "seconds")
        assert cells[4] == ("–" if found["ratio"] is None else f"{found['ratio']:.2g}")
        assert f"`{found['command']}`" in text and found["against"] in text
    assert text.count("Measured on: ") == 1 and all(cells[7] == "not measured |" for cells in table)  # never guessed
    record["loss"]["machine"] = {**record["loss"]["machine"], "processor": "Another"}
    assert "Another, " in fragments.speed(record)
    assert all(row in text.splitlines() for row in fragments.grown(record["growth"]["growth"]))
    svg = fragments.curve(record["kdpp-large"])
    assert svg.startswith("<?xml") and svg == fragments.curve(record["kdpp-large"])  # a build makes the same picture


def test_the_record_of_the_book_is_of_rows_that_there_are():
    path = fragments.ROOT / "book/results/speed.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for name, found in record.items():
        assert found["about"] == ROWS[name].about and found["goal"] == ROWS[name].goal, f"{name} was measured before it changed"
        assert not found["smoke"]
    assert not record or set(record) == set(ROWS)


def test_the_command(here, capsys, tmp_path):
    assert main(["bench", "--list"]) == 0
    assert all(re.search(rf"^{name} ", out, re.MULTILINE) for out in [capsys.readouterr().out] for name in ROWS)
    assert main(["bench", "--rows", "recall,kdpp-dense", "--rounds", "1", "--smoke", "--quiet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"machine", "rows"} and list(told["rows"]) == ["recall", "kdpp-dense"]
    assert main(["bench", "--rows", "kdpp-dense", "--rounds", "1", "--smoke"]) == 0
    out, err = capsys.readouterr()
    assert "picks identical" in out and "kdpp-dense: greedy k-DPP" in err
    assert main(["bench", "--rows", "nothing"]) == 1 and "no row 'nothing'" in capsys.readouterr().err
    record = tmp_path / "speed.json"
    assert main(["bench", "--rows", "recall", "--smoke", "--record", str(record)]) == 1 and not record.exists()
