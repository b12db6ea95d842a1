"""Commands that a person types and DVC does not run.

`python -m commands.NAME` imports this package before that module, and so before torch, whose import
takes seconds: until then, and at exit, Ctrl-C ends the process without a traceback. A lack of
memory or of room for temporary files is a line from the start.
"""

import signal
import sys

from face_attributes.errors import explain_shortage

if sys.argv[0] == "-m":
    sys.excepthook = explain_shortage
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `errors_in_one_line` runs
