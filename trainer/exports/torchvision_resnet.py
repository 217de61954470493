"""The command that imports others' ResNets: python -m trainer.exports.torchvision_resnet"""

import sys

from data_pipelines.common.arguments import HELP_WORDS, MISTAKE, help_page
from data_pipelines.common.errors import UserError
from data_pipelines.common.home import expand_home
from data_pipelines.common.output import outlive_readers
from data_pipelines.common.paths import refused_paths

PROGRAM = "python -m trainer.exports.torchvision_resnet"
HELP = help_page(
    "Imports a ResNet that others trained, as an exported encoder.\n"
    "It reads ResNet-18, 34, 50 and 101 under torchvision's names, after any prefix: plain weights, and "
    "checkpoints, as of facebookresearch/moco, of which the query encoder stays. Nothing but tensors is "
    "unpickled.",
    [f"{PROGRAM} from=CHECKPOINT to=FILE [prefix=PREFIX]"],
    {
        "from=CHECKPOINT": "a file of torch.save or safetensors: a state_dict, or dicts that hold one",
        "prefix=PREFIX": "which network, of a file with several: teacher. or module.encoder_k.; default: the "
        "one that was trained",
        "to=FILE": "the encoder that trainer.exports.encoder.load_encoder reads, for images of 224 px "
        "normalised as ImageNet's are",
    },
    [f"{PROGRAM} from=moco_v2.pth.tar to=encoder.safetensors"],
    {0: "the encoder is written", 2: MISTAKE},
)


def main(words: list[str]) -> int:
    """The command; `words` are from=CHECKPOINT and to=FILE. Returns the exit status. Raises UserError."""
    if HELP_WORDS & set(words):
        print(HELP)
        return 0
    try:
        arguments = {key: expand_home(value) for key, _, value in (word.partition("=") for word in words)}
    except ValueError as error:
        raise UserError(str(error)) from None
    if arguments.keys() - {"prefix"} != {"from", "to"}:
        raise UserError("expected from=CHECKPOINT to=ENCODER.safetensors, prefix=PREFIX, and nothing else")
    from trainer.exports.torchvision_weights import convert  # torch: help does not wait for it

    convert(arguments["from"], arguments["to"], prefix=arguments.get("prefix"))
    print(f"{arguments['to']}: read it with trainer.exports.encoder.load_encoder")
    return 0


if __name__ == "__main__":
    outlive_readers()
    try:
        with refused_paths():
            sys.exit(main(sys.argv[1:]))
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
