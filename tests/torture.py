"""How hard a proof tries: a small share under `make test`, all of it under `make torture`, which counts what was tried.

A proof is a test marked `@pytest.mark.torture`. It asks `tries` how often, and says by pytest's `record_property` what it has
has tried: "faults" (kills, cut files, full disks …) or "inputs" (mutated files and values). A proof fails by failing.

    @pytest.mark.torture
    def test_killed_and_resumed(tmp_path, record_property):
        for moment in moments(tries(3, 50)):
            ...
        record_property("faults", tries(3, 50))
"""

import os

#: Set by `make torture`.
HEAVY = os.environ.get("FUSEMIX_LITE_TORTURE") == "1"


def tries(light: int, heavy: int) -> int:
    """`light` under `make test`, `heavy` under `make torture`."""
    return heavy if HEAVY else light
