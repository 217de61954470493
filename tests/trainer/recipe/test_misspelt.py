"""Every key, name and choice, a letter dropped or two swapped: the message names what was meant."""

import pytest
import yaml

from data_pipelines.common.errors import UserError
from data_pipelines.common.suggest import likeness
from tests.helpers.recipes import EVERY_SECTION, NAMES, write
from trainer.recipe.diffusion import Diffuse
from trainer.recipe.loading import RECIPES, load
from trainer.recipe.messages import choices, fields
from trainer.recipe.recipes import TASKS
from trainer.recipe.schema import Pretrain
from trainer.recipe.trees import strip_origins
from trainer.recipe.yaml12 import parse, to_yaml_line

HYBRID = ["objective.kind=hybrid", "objective.omega=1"]
DIM = ["objective.contrast.kind=dim", "objective.contrast.bound=jsd"]
OPENED_BY = {
    "encoder.stem": ["encoder.kind=resnet"],
    "encoder.local": ["encoder.kind=resnet"],
    "encoder.layout": ["encoder.kind=nvae"],
    "encoder.w": ["encoder.kind=resnet"],
    "objective.global_critic.score": ["objective.global_critic.kind=dot"],
    "objective.queue.start": ["objective.kind=moco"],
    "objective.reconstruct": [*HYBRID, "objective.contrast.kind=moco"],
    "objective.contrast": [*HYBRID, *DIM],
    "objective.contrast.kind": HYBRID,
    "objective.contrast.global_critic.score": [*HYBRID, *DIM, "objective.contrast.global_critic.kind=dot"],
    "objective.contrast.queue": [*HYBRID, "objective.contrast.kind=moco"],
}


def opened_by(dotted: str) -> list[str]:
    """What must be said for a key to exist: that of the longest beginning of it that has such a thing."""
    parts = dotted.split(".")
    beginnings = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((OPENED_BY[key] for key in beginnings if key in OPENED_BY), [])


def mistake(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(list(arguments))
    return str(caught.value)


def mutations(word: str) -> list[str]:
    """Every other word with a letter dropped or two neighbours swapped."""
    words = {word[:index] + word[index + 1 :] for index in range(len(word))}
    words |= {word[:index] + word[index : index + 2][::-1] + word[index + 2 :] for index in range(len(word))}
    return sorted(words - {word, ""})


def meant(message: str, wrong: str, right: str) -> bool:
    """Whether the hint at the end of a message names the right word, or another as like the wrong one."""
    hint = message.partition("did you mean '")[2].partition("'?")[0]
    return hint == right or (hint != "" and likeness(wrong, hint) >= likeness(wrong, right))


def keys_of(section, at=()):
    """The path of every key in a plain tree."""
    for key, value in section.items() if isinstance(section, dict) else enumerate(section):
        if isinstance(key, str):
            yield (*at, key)
        if isinstance(value, (dict, list)):
            yield from keys_of(value, (*at, key))


def renamed(tree, path, name):
    """The tree with the last key of `path` called `name`, its place kept."""
    if len(path) == 1:
        return {name if key == path[0] else key: value for key, value in tree.items()}
    if isinstance(tree, list):
        return [
            renamed(item, path[1:], name) if index == path[0] else item for index, item in enumerate(tree)
        ]
    return {key: renamed(value, path[1:], name) if key == path[0] else value for key, value in tree.items()}


def section_at(tree, path):
    for step in path[:-1]:
        tree = tree[step]
    return tree


def schema_section(recipe, path) -> type:
    """The class of the section that holds the key at `path`."""
    for step in path[:-1]:
        recipe = recipe[step] if isinstance(step, int) else getattr(recipe, step)
    return type(recipe)


def schema_siblings(recipe, path) -> list[str]:
    return list(fields(schema_section(recipe, path)))


def tree_of(name):
    """What the recipe's file holds."""
    return strip_origins(parse((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), name))


def first_places() -> dict[str, list[tuple]]:
    """Recipe -> the paths of its keys that no recipe before it has in that section: most occur in many."""
    seen, places = set(), {}
    for name in NAMES:
        recipe = load([f"recipe={name}"]).recipe
        for path in keys_of(tree_of(name)):
            if (key := (schema_section(recipe, path), path[-1])) not in seen:
                seen.add(key)
                places.setdefault(name, []).append(path)
    return places


FIRST_PLACES = first_places()


def misspelt(tree, recipe, paths, folder):
    """Each misspelling of each key, a file each: the message, the dotted key misspelt, the right key."""
    for path in paths:
        siblings = schema_siblings(recipe, path)
        for wrong in set(mutations(path[-1])) - {*siblings}:
            message = mistake(
                write(folder, "misspelt", yaml.safe_dump(renamed(tree, path, wrong), sort_keys=False))
            )
            yield message, ".".join(map(str, (*path[:-1], wrong))), path[-1]


@pytest.mark.parametrize("name", FIRST_PLACES)
def test_every_misspelt_key_of_the_recipes_is_recognised(name, tmp_path):
    paths, count = FIRST_PLACES[name], 0
    for message, wrong, right in misspelt(tree_of(name), load([f"recipe={name}"]).recipe, paths, tmp_path):
        assert message.startswith("misspelt.yaml")
        assert "more mistake" not in message  # the key that was meant is not called missing as well
        assert f": {wrong}: unknown key; did you mean '" in message
        assert meant(message, wrong.rpartition(".")[2], right)
        count += 1
    assert count >= 2 * sum(len(path[-1]) > 1 for path in paths)  # of `y` there is no misspelling


@pytest.mark.parametrize("arguments", [["recipe=dim_local", *EVERY_SECTION], ["recipe=evaluate"]], ids=len)
def test_every_misspelt_key_of_the_schema_is_recognised_on_the_command_line(arguments):
    loaded = load(arguments)
    tree = loaded.resolved()
    for path in keys_of(tree):
        siblings = schema_siblings(loaded.recipe, path)
        value = to_yaml_line(section_at(tree, path)[path[-1]])
        for wrong in set(mutations(path[-1])) - {*siblings}:
            dotted = ".".join(map(str, (*path[:-1], wrong)))
            message = mistake(*arguments, f"{dotted}={value}")
            assert message.startswith(f"command line: {dotted}: unknown key; did you mean '")
            assert meant(message, wrong, path[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_misspelt_recipe_name_is_recognised(name, tmp_path):
    for wrong in set(mutations(name)) - {*NAMES}:
        for message in (mistake(f"recipe={wrong}"), mistake(write(tmp_path, "heir", f"base: {wrong}\n"))):
            assert f"unknown recipe '{wrong}'; did you mean '" in message
            assert meant(message, wrong, name)


def every_choice(sections, at=""):
    """(dotted key, its choices) for the whole schema."""
    options = {}
    for section in sections:
        for key, what in fields(section).items():
            if words := [option for option in what.options if isinstance(option, str)]:
                options[at + key] = [*options.get(at + key, []), *words]
            below = (what.item.sections, f"{at}{key}.0.") if what.item else (what.sections, f"{at}{key}.")
            options.update(every_choice(*below))
    return options


def test_every_misspelt_choice_is_recognised():
    known = every_choice((Pretrain,))
    of_diffusion = every_choice((Diffuse,))
    assert {"precision", "data.source", "schedule.kind", "optimizer.kind", "objective.critic.score"} <= set(
        known
    )
    known["task"] = list(choices(TASKS))
    check_choices("dim_local", known)
    new = {dotted: of_diffusion[dotted] for dotted in of_diffusion.keys() - known.keys()}
    assert {"objective.process", "objective.predict", "objective.scale", "draw.sampler"} == set(new)
    check_choices("diffuse_cifar10", new)


def check_choices(name, known):
    for dotted, options in known.items():
        for choice in options:
            for wrong in set(mutations(choice)) - {*options}:
                kind = opened_by(dotted)
                message = mistake(f"recipe={name}", *kind, f"{dotted}={to_yaml_line(wrong)}")
                assert f"command line: {dotted}: expected " in message
                assert f"got '{wrong}'; did you mean '" in message
                assert meant(message, wrong, choice)
