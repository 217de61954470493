"""The old door `python -m trainer.runtime.checkpoint`; the command is `trainer.checkpoints` now."""

import runpy
import sys

if __name__ == "__main__":
    print("trainer.runtime.checkpoint is trainer.checkpoints now", file=sys.stderr)
    runpy.run_module("trainer.checkpoints", run_name="__main__")
