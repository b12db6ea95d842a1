"""The pipeline: a module per stage.

`python -m stages.NAME` imports this package before that module, and so before torch, whose import
takes seconds and gigabytes: Ctrl-C, the end of DVC and a lack of memory are handled from the start.
"""

import os
import sys

from face_attributes.errors import explain_shortage
from face_attributes.processes import end_on_interrupt, end_with_parent

ADDRESS_SPACE = 5 * 10**9
"""Bytes of `ulimit -v` below which libraries end the process or wait forever as they are imported,
before anything here can say why."""


def warn_of_little_address_space() -> None:
    """Print a line if the limit on addresses is below ADDRESS_SPACE."""
    if sys.platform == "win32":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        print(
            f"warning: `ulimit -v` allows {limit / 1e9:.1f} GB, with which libraries may crash or "
            f"hang without a word: allow {ADDRESS_SPACE / 1e9:.0f} GB or more",
            file=sys.stderr,
        )


if sys.argv[0] == "-m":  # while Python looks for the module to run
    end_on_interrupt()
    sys.excepthook = explain_shortage
    warn_of_little_address_space()
    if {"DVC_STAGE", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        end_with_parent()
