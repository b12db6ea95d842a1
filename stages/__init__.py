"""The pipeline: a module per stage.

`python -m stages.NAME` imports this package before that module, and so before torch, whose import
takes seconds: Ctrl-C and the end of DVC count from the start.
"""

import os
import sys

from face_attributes.processes import end_on_interrupt, end_with_parent

if sys.argv[0] == "-m":  # while Python looks for the module to run
    end_on_interrupt()
    if "DVC_STAGE" in os.environ:
        end_with_parent()
