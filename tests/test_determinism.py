"""The same again: one seed, the same digits, whatever else is different. What may differ is known by name, and by how much."""

import ast
import contextlib
import glob
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from fusemix_lite import LatentPairs, files, public_layouts, retrieval, subsets
from fusemix_lite.adapters import FusionModel
from tests import same_again
from tests.same_again import ROOT, SETTINGS, apart, drawn, elsewhere, fits, losses, results, unequal, wide_fits
from tests.torture import HEAVY, tries

LOCALES = {"tr_TR.ISO-8859-9": ("tr_TR", "ISO-8859-9"), "de_DE.ISO-8859-1": ("de_DE", "ISO-8859-1")}


@pytest.fixture(scope="module")
def here():
    """Everything, made in this process, whatever ran in it before."""
    with threads(1):
        return results()


class threads(threadpool_limits):
    """So many threads for torch and for what scikit-learn and SciPy stand on, for a while."""

    def __init__(self, count: int):
        self.before = torch.get_num_threads()
        super().__init__(count)
        torch.set_num_threads(count)

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.set_num_threads(self.before)


def foreign(folder: Path, number: int) -> dict[str, str]:
    """The environment of a process under another locale; where none can be made, an ASCII one."""
    language, (source, charset) = list(LOCALES.items())[number % len(LOCALES)]
    place = folder / "locales"
    place.mkdir(exist_ok=True)
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", source, "-f", charset, str(place / language)], capture_output=True
    )
    found = {"LC_ALL": language, "LOCPATH": str(place)} if made and (place / language).is_dir() else {"LC_ALL": "C"}
    return same_again.HOSTILE | {"PYTHONHASHSEED": str(4711 + number)} | found


@pytest.mark.torture
def test_another_process_gives_the_same_bytes(here, tmp_path, record_property):
    """Another order of sets, locale, time zone and current folder, listings in random order, generators that were used before,
    an empty cache; and no global random state is changed."""
    for number in range(tries(1, 10)):
        there = elsewhere(tmp_path / "out", foreign(tmp_path, number), "--hostile", str(number + 1), folder=tmp_path)
        assert not unequal(here, there), f"differs in process {number}"
    record_property("faults", tries(1, 10))


def test_again_in_one_process(here):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    with threads(1):
        again = results((fits, losses, same_again.subsets, same_again.spaces, same_again.folders))
    assert again and not unequal({name: here[name] for name in again}, again)


def test_two_threads_change_a_fit_by_rounding_and_nothing_else(here):
    """What differs is known by name: gradients. LayerNorm and matrix products with a long inner side add up in parts."""
    parts = tries((wide_fits, losses, same_again.subsets), ())
    with threads(2):
        two, again = results(parts), results(tries((wide_fits,), ()))
    assert not unequal({name: two[name] for name in again}, again)  # the same number of threads: the same digits
    other = unequal({name: here[name] for name in two}, two)
    assert {name for name in other if not name.startswith(same_again.ROUNDED_BY_THREADS)} == set()
    assert not [name for name in other if name.endswith("looks")]
    # of a loss millionths; a weight more, since Adam divides a gradient by its size, and so a small one by nearly nothing
    assert not [name for name in other if apart(here[name], two[name]) > (1e-4 if name.endswith("history") else 1e-2)]


@pytest.mark.torture
def test_other_processors_change_digits_by_rounding(here, tmp_path, record_property):
    """Instructions of older processors, as far as libraries let themselves be told; what is counted or picked stays."""
    if not HEAVY:
        pytest.skip("make torture")
    for setting in SETTINGS:
        there = elsewhere(tmp_path / "out", SETTINGS[setting])
        for name in unequal(here, there):
            if here[name].is_floating_point():
                assert apart(here[name], there[name]) < 1e-3, (setting, name)
    record_property("faults", len(SETTINGS))


def test_k_means_does_not_depend_on_threads(monkeypatch):
    """From three threads on, scikit-learn adds up in the order in which they get ready: other digits every time."""
    from sklearn import cluster

    centres = []

    class Watched(cluster.KMeans):
        def fit_predict(self, z):
            found = super().fit_predict(z)
            centres.append(self.cluster_centers_.tobytes())
            return found

    monkeypatch.setattr(cluster, "KMeans", Watched)
    z = drawn(3000, 16)
    with threads(1):
        once = subsets.cluster_balanced(z, 100)
    with threads(4):
        for _ in range(4):
            assert subsets.cluster_balanced(z, 100).equal(once)
    assert len(centres) == 5 and len(set(centres)) == 1
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda count: contextlib.nullcontext())
    with threads(4):
        subsets.cluster_balanced(z, 100)
    assert centres[-1] != centres[0]  # without the limit the test would see it


def test_where_latents_lie_in_memory_does_not_matter():
    """NumPy puts arrays at any multiple of 16 bytes, torch at multiples of 64: products must not depend on it."""
    model = FusionModel({"image": 48, "text": 32}, 16, depth=1).eval()
    found = []
    for shift in range(0, 64, 4):
        x, y = (np.frombuffer(bytearray(4 * n * d + 64), np.uint8)[shift:] for n, d in ((130, 48), (390, 32)))
        x, y = (np.frombuffer(z.data, np.float32, n * d).reshape(n, d) for z, n, d in ((x, 130, 48), (y, 390, 32)))
        x[:], y[:] = drawn(130, 48).numpy(), drawn(390, 32, seed=1).numpy()
        pairs = LatentPairs(torch.from_numpy(x), torch.from_numpy(y), torch.arange(390) // 3)
        with torch.inference_mode():
            found.append(torch.cat([model.embed("image", pairs.x), model.embed("text", pairs.y)]))
        assert retrieval(model, pairs) == retrieval(model, LatentPairs(pairs.x + 0, pairs.y + 0, pairs.owner))
    assert all(embedded.equal(found[0]) for embedded in found)


# The comparisons above can fail


def test_a_leak_is_seen(monkeypatch, here):
    """Sets in their own order, the global generator, the time: each would show."""
    monkeypatch.setattr(same_again, "scores", lambda: {"ranks": torch.rand(3)})
    with pytest.raises(AssertionError, match="lambda.*random state of torch"):
        results((same_again.scores,))
    bit = here["ranks"].clone()
    bit[0] += 1
    assert unequal(here, here | {"ranks": bit}) == ["ranks"]
    assert unequal(here, {}) and unequal({}, here) and apart(here["ranks"], bit) == float("inf")
    nothing = torch.tensor([0.0])
    assert unequal({"zero": nothing}, {"zero": -nothing}) == ["zero"]  # bit by bit


def test_listings_come_in_another_order_where_they_are_shuffled(tmp_path, monkeypatch):
    """Or the test of order would test nothing: by each way in which a folder can be listed."""
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for module, name in ((os, "listdir"), (os, "scandir")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that both come back
    same_again.shuffled_listings(random.Random(0))
    listings = {
        "listdir": os.listdir("."),
        "scandir": [entry.name for entry in os.scandir(".")],
        "walk": next(os.walk("."))[2],
        "glob": glob.glob("*"),
        "iterdir": [path.name for path in Path(".").iterdir()],
        "Path.glob": [path.name for path in Path(".").glob("*")],
    }
    for how, found in listings.items():
        assert sorted(found) == names != found, how


def test_an_order_that_is_left_to_the_disk_is_seen(monkeypatch, here):
    """Listings that nobody sorts."""
    for module, name in ((os, "listdir"), (os, "scandir")):
        monkeypatch.setattr(module, name, getattr(module, name))
    same_again.shuffled_listings(random.Random(1))
    assert not unequal({name: here[name] for name in same_again.folders()}, same_again.folders())
    for module in (files, public_layouts):
        monkeypatch.setattr(module, "sorted", lambda found, **how: list(found), raising=False)
    seen = {name for _ in range(5) for name in unequal(here, here | same_again.folders())}
    assert seen == {"a folder without a table", "sounds by their stems"}


# Text files


def test_text_is_read_and_written_as_utf8():
    """What is left to the locale is another text under another one: each call has to name its encoding."""
    code = [file for folder in ("fusemix_lite", "tools") for file in (ROOT / folder).glob("*.py")]
    assert not [place for file in code for place in unsaid(file)]


def unsaid(file: Path) -> list[str]:
    """Where a file of code opens a text file without saying its encoding."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and leaves_encoding_open(node):
            found.append(f"{file.name}:{node.lineno}")
    return found


def leaves_encoding_open(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given, named = len(call.args), {keyword.arg for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute) and given < (1 if name == "read_text" else 2)
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return name == "open" and any(set(mode) <= set("rwax+t") and mode for mode in modes)


def test_an_unsaid_encoding_is_seen(tmp_path):
    file = tmp_path / "code.py"
    file.write_text('p.read_text()\np.write_text(x)\np.open("a")\nopen(p, "w")\np.read_text("utf-8")\np.open("rb")\n', "utf-8")
    assert unsaid(file) == [f"code.py:{line}" for line in range(1, 5)]
