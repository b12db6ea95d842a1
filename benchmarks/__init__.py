"""What the workflow costs, against what people use today."""

import stages  # noqa: F401  both contenders start as a stage does
