"""What a kernel of `make lab` runs first (PYTHONSTARTUP): cells marked `#| slow` wait until somebody asks for them.

"Run All" of a chapter then takes seconds. `%env GNN_ECOMMERCE_SLOW=1` in a cell lets the slow ones run.
"""

import os


def is_slow(lines):
    "Does a cell carry `#| slow` among its first comments?"
    for line in lines:
        if line.strip() and not line.startswith("#"):
            return False
        if line.replace(" ", "").startswith("#|slow"):
            return True
    return False


def leave_out(lines):
    "Replace a slow cell by a note, unless GNN_ECOMMERCE_SLOW is set."
    if os.environ.get("GNN_ECOMMERCE_SLOW") or not is_slow(lines):
        return lines
    note = "Left out, it takes long. To run it: %env GNN_ECOMMERCE_SLOW=1 in a cell of its own, then this one again."
    return [f"print({note!r})\n"]


if "get_ipython" in globals():
    get_ipython().input_transformers_cleanup.append(leave_out)  # noqa: F821
