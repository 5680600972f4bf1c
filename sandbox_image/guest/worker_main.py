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
    descriptor, niceness, library = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    lower_standing(niceness)
    die_with_parent()
    own = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, own)  # isolated mode leaves it out

    from worker_asks import Asks
    from worker_cells import Cells
    from worker_channel import Channel
    from worker_contexts import Contexts
    from worker_interrupts import Interrupts
    from worker_output import Streams
    from worker_session import Session

    sys.path.remove(own)  # the guest's own modules are no libraries for the code
    if os.path.isdir(library):
        sys.path.insert(0, library)
    sys.argv = [""]
    interrupts = Interrupts()
    channel = Channel(descriptor, interrupts)
    asks = Asks(channel, interrupts)
    contexts = Contexts()
    channel.start(asks)
    Session(channel, asks, contexts, Cells(interrupts, contexts), Streams()).serve()


if __name__ == "__main__":
    main()
