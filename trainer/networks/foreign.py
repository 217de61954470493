"""The old door `python -m trainer.networks.foreign`, now `trainer.exports.torchvision_resnet`."""

import runpy
import sys

if __name__ == "__main__":
    print("trainer.networks.foreign is trainer.exports.torchvision_resnet now", file=sys.stderr)
    runpy.run_module("trainer.exports.torchvision_resnet", run_name="__main__")
