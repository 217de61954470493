"""Recipes: inheritance, overrides, YAML 1.2, origins, fingerprints, and one clear line for every mistake."""

import pytest
import yaml

from data_pipelines.common.errors import UserError
from tests.helpers.recipes import EVERY_SECTION, NAMES, write
from trainer.recipe.loading import OLD_NAMES, RECIPES, listing, load, load_saved, saved_training
from trainer.recipe.schema import EvaluateRun, Pretrain
from trainer.recipe.trees import flatten, strip_origins
from trainer.recipe.yaml12 import parse, to_yaml_line

# ---- the recipes that come with the project --------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_loads_and_its_text_reads_back_equal(name, tmp_path):
    loaded = load([f"recipe={name}"])
    path = tmp_path / "recipe.yaml"
    path.write_text(loaded.text(), encoding="utf-8")
    assert load_saved(path).recipe == loaded.recipe
    assert load_saved(path).resolved() == loaded.resolved() == yaml.safe_load(loaded.text())
    assert load_saved(path).fingerprint() == loaded.fingerprint()
    assert load_saved(path).notices == ()


def test_listing_shows_name_task_and_first_comment():
    shown = {one.name: one for one in listing()}
    assert sorted(shown) == NAMES
    assert shown["dim_local_paper"].task == "pretrain"  # inherited
    assert shown["evaluate"].task == "evaluate"
    for name, one in shown.items():
        first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert one.description
        assert first == f"# {one.description}"


def test_the_pretraining_recipes_fit_their_groups_and_the_paper_twin_is_one_group():
    for name in NAMES:
        recipe = load([f"recipe={name}"]).recipe
        if isinstance(recipe, Pretrain):
            assert recipe.batch % recipe.groups.norm == 0
    paper, local = load(["recipe=dim_local_paper"]).recipe, load(["recipe=dim_local"]).recipe
    assert paper.batch == paper.groups.norm == 64
    assert paper.model_copy(update={"batch": local.batch}) == local


def test_quickstart_saves_at_least_ten_times():
    recipe = load(["recipe=quickstart"]).recipe
    assert recipe.images / recipe.save.every >= 10


@pytest.mark.parametrize("path", sorted((RECIPES / "launch").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_the_launch_files(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))  # raises on a key that it does not know
    assert (config.num_machines, config.mixed_precision) == (1, "no")
    # with `use_cpu`, or as MULTI_CPU, accelerate 1.15 starts one process for any --num_processes, or warns
    types = {"ddp": "MULTI_GPU", "cpu": "NO", "fsdp2": "FSDP"}
    assert str(config.distributed_type.value) == types.get(path.stem, "DEEPSPEED")
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
    assert not config.use_cpu


# ---- overrides, inheritance, origins ---------------------------------------------------------------


def test_overrides_reach_values_sections_list_items_and_null():
    recipe = load(
        [
            "recipe=dim_local",
            "optimizer.lr=3e-4",
            "optimizer.betas.0=0.8",
            "data.views.0.flip=0.5",
            "schedule={kind: cosine, warmup: 5120}",
            "evaluate.mlp=null",
            "images=5e7",
            "batch=128",
            "batch=256",
        ]
    ).recipe
    assert recipe.optimizer.lr == 3e-4
    assert recipe.optimizer.betas == [0.8, 0.999]
    assert recipe.data.views[0].flip == 0.5
    assert (recipe.schedule.kind, recipe.schedule.warmup) == ("cosine", 5120)
    assert recipe.evaluate.mlp is None
    assert recipe.images == 50_000_000
    assert isinstance(recipe.images, int)
    assert recipe.batch == 256  # the last of a key given twice


def test_part_of_a_section_keeps_the_rest_of_its_default():
    recipe = load(
        ["recipe=dim_local", "data.views.0.crop={scale: {low: 0.2, high: 1}, ratio: {low: 0.5}}"]
    ).recipe
    assert recipe.data.views[0].crop.ratio.low == 0.5
    assert recipe.data.views[0].crop.ratio.high == pytest.approx(4 / 3)


def test_inheritance_merges_sections_replaces_lists_and_drops_the_keys_of_another_kind(tmp_path):
    write(tmp_path, "grandparent", "base: dim_local\nschedule: {kind: cosine, final: 0.5, warmup: 64}\n")
    write(
        tmp_path, "parent", "base: grandparent.yaml\nencoder: {channels: [8, 16]}\nschedule: {warmup: 128}\n"
    )
    same = load([write(tmp_path, "same", "base: parent.yaml\ndata: {views: [{flip: 0.5}, {flip: 1.0}]}\n")])
    assert (same.recipe.schedule.final, same.recipe.schedule.warmup) == (0.5, 128)
    assert same.recipe.encoder.channels == [8, 16]
    assert same.recipe.encoder.fc == 1024
    assert [view.flip for view in same.recipe.data.views] == [0.5, 1.0]
    assert same.origin["encoder.channels"] == "parent.yaml"
    assert same.origin["schedule.final"] == "grandparent.yaml"
    assert same.origin["batch"] == "dim_local.yaml"

    other = load([write(tmp_path, "other", "base: parent.yaml\nschedule: {kind: constant}\n")]).recipe
    assert other.schedule.model_dump() == {"kind": "constant", "warmup": 0}
    by_command = load([f"recipe={tmp_path}/parent.yaml", "schedule.kind=constant"]).recipe
    assert by_command == other


def test_a_kind_changed_on_the_command_line_drops_inherited_keys_whatever_the_order():
    for order in (
        ["optimizer.kind=adamw", "optimizer.lr=1e-3"],
        ["optimizer.lr=1e-3", "optimizer.kind=adamw"],
    ):
        optimizer = load(["recipe=dim_local", *order]).recipe.optimizer
        assert (optimizer.kind, optimizer.lr, optimizer.betas) == ("adamw", 1e-3, [0.9, 0.999])


def test_origins_name_every_leaf_once():
    loaded = load(
        ["recipe=dim_local_small", "optimizer.lr=1e-3", "optimizer.betas.0=0.8", "data.views.0.flip=0.5"]
    )
    assert list(loaded.origin) == [key for key, _ in flatten(loaded.resolved())]
    assert loaded.origin["optimizer.lr"] == loaded.origin["data.views.0.flip"] == "command line"
    assert loaded.origin["optimizer.betas"] == "command line, dim_local.yaml"
    assert loaded.origin["objective.critic.units"] == "dim_local_small.yaml"
    assert loaded.origin["data.root"] == "dim_local.yaml"
    assert loaded.origin["seed"] == loaded.origin["data.views.0.crop"] == "default"
    assert loaded.name == "dim_local_small"


def test_text_shows_origins_in_one_column_and_keeps_awkward_text(tmp_path):
    awkward = [
        "1e-3",
        "on",
        "1:30",
        "null",
        "a: b # c",
        "naïve\nlines",
        "2024-01-01",
        "",
        "'\"",
        "0x1F",
        "{",
        "é\t",
    ]
    for value in awkward:
        loaded = load(["recipe=quickstart", f"data.root={to_yaml_line(value)}", *EVERY_SECTION])
        assert loaded.recipe.data.root == value
        assert loaded.text().count("\n") == load(["recipe=quickstart", *EVERY_SECTION]).text().count("\n")
        path = tmp_path / "recipe.yaml"
        path.write_text(loaded.text(), encoding="utf-8")
        assert load_saved(path).recipe == loaded.recipe
    lines = load(["recipe=quickstart", "optimizer.lr=1e-3"]).text().splitlines()[1:]
    assert {line.rindex("#") for line in lines if "#" in line} == {lines[0].rindex("#")}
    assert next(line for line in lines if line.startswith("  lr:")).endswith("# command line")


def test_from_is_written_and_read_as_from():
    loaded = load(["recipe=evaluate", "from=outputs/x"])
    assert isinstance(loaded.recipe, EvaluateRun)
    assert loaded.recipe.from_ == loaded.resolved()["from"] == "outputs/x"
    assert loaded.origin["from"] == "command line"
    with pytest.raises(UserError, match="did you mean 'from'"):
        load(["recipe=evaluate", "from_=outputs/x"])


# ---- old names of keys -----------------------------------------------------------------------------


def test_an_old_name_of_a_key_is_its_new_one(tmp_path):
    """In every tree before they are merged: the nearer tree stands, by whichever name it says it."""
    assert OLD_NAMES["data.patience"] == "data.retry_seconds"
    old = write(tmp_path, "old", "base: dim_local\ndata: {patience: 1}\n")
    new = write(tmp_path, "new", "base: old.yaml\ndata: {retry_seconds: 2}\n")
    for arguments, seconds in (
        ([old], 1),
        ([new], 2),
        ([new, "data.patience=3"], 3),
        ([new, "data={patience: 4}"], 4),
        ([old, "data.retry_seconds=5"], 5),
        ([old, "data.patience=6", "data.patience=7"], 7),
    ):
        loaded = load(arguments)
        assert loaded.recipe.data.retry_seconds == seconds
        assert f"retry_seconds: {seconds}.0 " in loaded.text()
        assert "patience" not in loaded.text()
        assert loaded.fingerprint() == load(["recipe=dim_local"]).fingerprint()
    assert load([old]).origin["data.retry_seconds"] == "old.yaml"
    is_now = "data.patience is data.retry_seconds now"
    assert load([new, "data.patience=3"]).notices == (f"command line: {is_now}", f"old.yaml: {is_now}")
    assert load(["recipe=dim_local", "data.retry_seconds=3"]).notices == ()


def test_a_run_s_recipe_of_an_older_version_is_read(tmp_path):
    path, loaded = tmp_path / "recipe.yaml", load(["recipe=dim_local", "data.retry_seconds=5"])
    path.write_text(loaded.text().replace("retry_seconds", "patience"), encoding="utf-8")
    assert load_saved(path).recipe == loaded.recipe
    assert load_saved(path).fingerprint() == loaded.fingerprint()
    assert load_saved(path).notices == ()


def test_a_run_that_trained_nothing_is_one_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(load(["recipe=dim_local"]).text(), encoding="utf-8")
    assert saved_training(path) == load(["recipe=dim_local"]).recipe
    path.write_text(load(["recipe=evaluate", "from=outputs/dim_local"]).text(), encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.yaml: task: expected a recipe that trains, got evaluate"):
        saved_training(path)


# ---- YAML 1.2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("+1.5", 1.5), (".5", 0.5), ("-.inf", float("-inf")), ("5.", 5.0),
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("-7", -7), ("true", True), ("False", False), ("~", None),
        ("null", None), ("on", "on"), ("yes", "yes"), ("No", "No"), ("1:30", "1:30"), ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"), ("<<", "<<"), ("=", "="), ("1e", "1e"), (".", "."),
        ('"5"', "5"), ("0b1", "0b1"), ("nan", "nan"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = strip_origins(parse(text, "here"))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value", [1e-8, 5e-05, 1e300, 3, -0.5, True, None, "1e-3", "yes", [0.5, 1], {"a": [1, "b"]}]
)
def test_flow_reads_back_equal(value):
    read = strip_origins(parse(to_yaml_line(value), "here"))
    assert read == value
    assert type(read) is type(value)


def test_anchors_are_fine():
    assert strip_origins(parse("a: &x {low: 1}\nb: *x\n", "here")) == {"a": {"low": 1}, "b": {"low": 1}}
