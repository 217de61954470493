"""What a question or a bug report needs: versions, machine, engines, recipe; nothing secret or personal.

Texts of others (error messages) lose credentials in addresses, the home folder, and the names of user and
machine. Of environment variables the names are printed, and the values of a few that are numbers.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from data_pipelines.common.arguments import HELP_WORDS, MISTAKE, help_page
from trainer.distributed.devices import nvidia_gpus
from trainer.distributed.launcher import default_config_file
from trainer.recipe import loading
from trainer.recipe.messages import fields
from trainer.recipe.yaml12 import DEFAULT
from trainer.tasks.environment import machine
from trainer.tasks.environment.imports import probe
from trainer.tasks.environment.private import one_line
from trainer.tasks.environment.versions import versions

PROGRAM = "hybrid-infomax env"
HELP = help_page(
    "Prints versions, machine and engines as Markdown, to be pasted into an issue. No secret, path, user or "
    "host name is in it: of texts in a recipe and of variables only the names are printed.",
    [f"{PROGRAM} [recipe=NAME [KEY=VALUE ...]]"],
    {
        "recipe=NAME": "the recipe of the question: adds its kind and the keys that differ from its files",
        "KEY=VALUE": "the same as in the command that trains",
    },
    [PROGRAM, f"{PROGRAM} recipe=quickstart images=1e4"],
    {0: "printed, also where a part is missing or broken", 2: MISTAKE},
)
SHOWN_VALUES = re.compile(
    "OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES|WORLD_SIZE|LOCAL_WORLD_SIZE|"
    "SLURM_(JOB_NUM_NODES|NNODES|NTASKS|NTASKS_PER_NODE|CPUS_PER_TASK|GPUS_ON_NODE|RESTART_COUNT)"
)
PLAIN_VALUE = re.compile(r"[\d,x()]{0,60}")
VARIABLES = {
    "Slurm": re.compile("SLURM_.*"),
    "launcher and libraries": re.compile(
        "(ACCELERATE|FSDP|DS|DEEPSPEED|TORCH|TORCHELASTIC|PYTORCH|NCCL|GLOO|CUDA|NVIDIA|DALI|OMP|GOMP|KMP|MKL|"
        "MLFLOW|HF|LOCAL|MASTER|GROUP)_.*|RANK|WORLD_SIZE|(HTTPS?|NO|ALL)_PROXY|https?_proxy|LD_PRELOAD"
    ),
}
CONFIG_KEYS = ("distributed_type", "num_processes", "num_machines", "mixed_precision", "use_cpu")


def main(words: list[str]) -> int:
    """The command `hybrid-infomax env`; the exit status. Raises UserError for a mistake in the recipe."""
    if HELP_WORDS & set(words):
        print(HELP)
        return 0
    loaded = loading.load(words) if words else None
    print(report(loaded))
    return 0


def report(loaded: loading.ResolvedRecipe | None) -> str:
    """All sections as Markdown. A part that cannot be read is a line that says so."""
    probed = probe()
    sections: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("Versions", lambda: versions(probed)),
        ("Machine", machine_lines),
        ("What starts here", lambda: engines(probed)),
    ]
    if loaded:
        sections.append(("Recipe", lambda: recipe_lines(loaded)))
    blocks = []
    for title, lines in sections:
        block = [f"### {title}", ""]
        try:
            for line in lines():
                block.append(f"- {line}")
        except Exception as error:  # the next section is still of use
            block.append(f"- this section ends here: {one_line(error)}")
        blocks.append("\n".join(block))
    return "\n\n".join(blocks)


# ---- the machine, and what starts on it ----------------------------------------------------------


def machine_lines() -> Iterator[str]:
    """System, processor, memory, GPUs; a part that cannot be read is one line."""
    yield f"system: {machine.system()}"
    for part in (machine.processor, machine.memory, machine.gpus):
        try:
            yield from part()
        except Exception as error:
            yield f"{part.__name__}: cannot be read: {one_line(error)}"


def engines(probed: dict[str, dict]) -> Iterator[str]:
    """Whether torch uses the GPUs, the engines, accelerate's default file, and variables."""
    torch, deepspeed = probed["torch"], probed["deepspeed"]
    if "error" in torch:
        yield "engines: none, torch cannot be imported"
    else:
        gpu = torch["gpu"]
        usable = ", ".join(map(one_line, gpu["names"]))
        present = len(nvidia_gpus())
        unused = f", although {present} device file{'s' * (present > 1)} of NVIDIA GPUs can be opened"
        none = f"none{unused * (present > 0)}: {one_line(gpu['why'])}"
        yield f"torch and GPUs: {usable or none}"
        yield f"torch: {torch['threads']} threads, {torch['backends']}"
        zero = "zero1, zero2, zero3" if "error" not in deepspeed else "no zero1 to zero3 without deepspeed"
        yield f"engines: single process, ddp, fsdp2, {zero}"
    yield f"accelerate's default file: {default_configuration()}"
    for title, pattern in VARIABLES.items():
        names = sorted(name for name in os.environ if pattern.fullmatch(name))
        yield f"variables of {title}: {', '.join(map(variable, names)) or 'none'}"


def default_configuration() -> str:
    """The settings of accelerate's default file that decide what starts."""
    file = default_config_file()
    if not file.exists():
        return "absent"
    options = yaml.safe_load(file.read_text()) or {}
    known = {key: str(options[key]) for key in CONFIG_KEYS if key in options}
    shown = [f"{key} {value}" for key, value in known.items() if re.fullmatch(r"\w{1,20}", value)]
    return f"present, {', '.join(shown) or 'without settings'}"


def variable(name: str) -> str:
    """A variable's name; also its value where that is one of the harmless numbers."""
    value = os.environ[name]
    shown = SHOWN_VALUES.fullmatch(name) and PLAIN_VALUE.fullmatch(value)
    return f"{name}={value}" if shown else name


# ---- the recipe ----------------------------------------------------------------------------------


def recipe_lines(loaded: loading.ResolvedRecipe) -> Iterator[str]:
    """The recipe's name and kinds, and the keys that its user has set; texts are named, not shown."""
    published = {path.name for path in loading.RECIPES.glob("*.yaml")}
    values = loaded.resolved()
    kinds = [f"{part} {values[part]['kind']}" for part in ("objective", "encoder") if part in values]
    yield f"recipe: {', '.join([loaded.name, values['task'], *kinds])}"
    keys = [key for key, origin in loaded.origin.items() if origin not in (DEFAULT, *published)]
    yield f"set by its user: {', '.join(setting(loaded, key) for key in keys) or 'nothing'}"


def setting(loaded: loading.ResolvedRecipe, key: str) -> str:
    """A key with its value where that is a number, true, false, null, or a choice of the schema."""
    value: Any = loaded.recipe
    choices: tuple = ()
    for name in key.split("."):
        choices = ()
        if isinstance(value, BaseModel):
            choices = fields(type(value))[name].options
            value = value.model_dump(by_alias=True)[name] if name not in dict(value) else dict(value)[name]
        else:
            value = value[int(name)] if isinstance(value, list) else value[name]
    plain = value is None or isinstance(value, bool | int | float) or value in choices
    return f"{key}={json.dumps(value)}" if plain else key
