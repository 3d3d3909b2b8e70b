"""The command `latentrt`."""

import signal
import threading

# Until `main` can tell it in a line, Ctrl-C ends the process without a traceback.
_bare = (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _bare:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from .main import main  # noqa: E402  # takes a while

if _bare:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = ["main"]
