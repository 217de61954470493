"""The old door `python -m trainer.runtime.tracking`; the command is `trainer.tracking` now."""

import runpy
import sys

if __name__ == "__main__":
    print("trainer.runtime.tracking is trainer.tracking now", file=sys.stderr)
    runpy.run_module("trainer.tracking", run_name="__main__")
