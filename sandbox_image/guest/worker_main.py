"""The worker: a process of its own that runs the cells."""

from __future__ import annotations

import os
import sys


def lower_standing(niceness: int) -> None:
    """The agent must answer while this process spins, and outlive it when memory runs out."""
    try:
        os.nice(niceness)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # not allowed here: the agent then shares its chances with the worker


def die_with_parent() -> None:
    """In a container all ends with process 1; elsewhere a worker that computes does not see that its agent is gone."""
    if os.getppid() == 1:
        return
    import ctypes

    pr_set_pdeathsig, sigkill = 1, 9
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, sigkill, 0, 0, 0)


def main() -> None:
    """Serves the agent until it closes the socket."""
    control, questions, niceness, library = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    lower_standing(niceness)
    die_with_parent()
    own = os.path.dirname(os.path.abspath(__file__))
    # As in main.py, and gone again below: the guest's own modules are no libraries for the code.
    folders = [own, os.path.join(os.path.dirname(own), "generated")]
    sys.path[:0] = folders

    from worker_asks import Asks
    from worker_cells import Cells
    from worker_channel import Channel, cut_off, taken_over
    from worker_contexts import Contexts
    from worker_http2 import Connection
    from worker_interrupts import Interrupts
    from worker_output import Streams
    from worker_session import Session

    del sys.path[: len(folders)]
    if os.path.isdir(library):
        sys.path.insert(0, library)
    sys.argv = [""]
    interrupts = Interrupts()
    channel = Channel(control, interrupts)
    asks = Asks(Connection(taken_over(questions), interrupts, cut_off), interrupts)
    contexts = Contexts()
    Session(channel, asks, contexts, Cells(interrupts, contexts), Streams()).serve()


if __name__ == "__main__":
    main()
