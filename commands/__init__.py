"""Commands that a person types and DVC does not run.

`python -m commands.NAME` imports this package before that module, and so before torch, whose import
takes seconds: until then, and at exit, Ctrl-C ends the process without a traceback.
"""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `errors_in_one_line` runs
