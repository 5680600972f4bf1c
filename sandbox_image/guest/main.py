"""The agent: process 1 of a sandbox. It runs no model code; it holds the connection to the host and keeps the clock."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # see agent_loop
import os
import sys

EXIT_ENDED, EXIT_FAILED, EXIT_USAGE, EXIT_TIME = 0, 1, 2, 3


def main() -> int:
    """Runs until the host ends the stream; returns the exit status."""
    own = os.path.dirname(os.path.abspath(__file__))
    # Isolated mode leaves the script's folder out; in a source tree the protocol code is in the folder beside it.
    sys.path[:0] = [own, os.path.join(os.path.dirname(own), "generated")]
    os.chdir("/")  # where the worker begins

    from agent_dial import dial
    from agent_processes import WorkerProcess, kill_everything
    from agent_settings import Settings, SettingsError

    # A handler instead of SIG_IGN, which the worker and all its children would inherit.
    _signal.signal(_signal.SIGINT, lambda *_: None)
    try:
        settings = Settings(os.environ)
    except SettingsError as error:
        print(f"rlm agent: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        # The worker starts while the rest is imported.
        first = WorkerProcess.start(settings, os.environ, dial(settings.address, settings.attach_timeout_s))
        from agent_loop import Ended
        from agent_session import attach

        try:
            attach(settings, first)
        except Ended as error:
            print(f"rlm agent: {error}", file=sys.stderr)
            return EXIT_FAILED
    except TimeoutError:
        return EXIT_TIME
    except OSError as error:
        print(f"rlm agent: no worker can be started: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        kill_everything()
    return EXIT_ENDED


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # nothing may hold the end up
