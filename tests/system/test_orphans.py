"""The processes of a run end with the process that started it."""

import time
from pathlib import Path

from automixalign.system.orphans import LOCK_VARIABLE
from tests.system.processes import start

_HOLDER = """
import sys, time
from pathlib import Path
from automixalign.system.orphans import hold_lock
lock = hold_lock(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(600)
"""
_DEPENDENT = """
import time
from automixalign.system.orphans import end_with_lock_holder
end_with_lock_holder()
print("ready", flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_the_lock_holder_also_if_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    holder = start(_HOLDER, path)
    dependent = start(_DEPENDENT, **{LOCK_VARIABLE: str(path)})
    time.sleep(0.2)
    assert dependent.poll() is None
    holder.kill()
    assert dependent.wait(10) == -9, "the holder is still a zombie"
    holder.wait()
