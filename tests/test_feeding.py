"""Workers that open items: what becomes of them when the process that started them is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
from fusemix_lite.encoders import load_encoder
from fusemix_lite.feeding import Task, feed

if __name__ == "__main__":
    captions = ["a red bell"] * 1000
    tasks = (Task(range(i, i + 1), (0,)) for i in range(1000))
    stream = feed(captions, [load_encoder("lite-text-a", "cpu")], tasks, 1)
    next(stream)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    input()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_workers_end_when_their_process_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        worker = int(process.stdout.readline())
        process.kill()
        process.wait()
    for _ in range(300):
        if not _alive(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker outlived the process that started it")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = f"/proc/{pid}/stat"
    return not (os.path.exists(stat) and open(stat).read().rpartition(")")[2].split()[0] == "Z")  # nobody may reap it here
