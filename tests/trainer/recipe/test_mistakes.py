"""One clear line for every mistake in a recipe's file or on the command line."""

import re

import pytest

from data_pipelines.common.errors import UserError
from tests.helpers.recipes import write
from trainer.recipe.loading import load, load_saved

TASKS = "'pretrain', 'evaluate', 'diffuse', 'sample' or 'measure'"


def mistake(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(list(arguments))
    assert "\n" not in str(caught.value)
    assert not any(
        jargon in str(caught.value) for jargon in ("Input", "Extra", "Field required", "pydantic", "str_")
    )
    return str(caught.value)


# ---- mistakes in files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: pretrain\nbatch: 1\nbatch: 2\n", "bad.yaml, line 3: duplicate key 'batch'"),
        ("base: dim_local\noptimizer:\n  lr: 1\n  lr: 2\n", "bad.yaml, line 4: duplicate key 'lr'"),
        ("base: dim_local\nbatch: !!int '5'\n", "bad.yaml, line 2: not valid YAML: the tag !!int is refused"),
        ("base: dim_local\nx: !!python/object:os.system {}\n", "line 2: not valid YAML: the tag !!python"),
        ("base: dim_local\nbatch: [1\n", "bad.yaml, line 3: not valid YAML"),
        ("base: dim_local\n\tbatch: 1\n", "bad.yaml, line 2: not valid YAML"),
        ("base: dim_local\n---\nbatch: 1\n", "bad.yaml, line 2: not valid YAML"),
        ("a: &a [*a]\n", "this anchor contains itself"),
        ("? [a, b]\n: 1\n", "a key must be one word"),
        ("", "bad.yaml: expected a recipe, lines of key: value, got null"),
        ("- 1\n", "bad.yaml: expected a recipe, lines of key: value, got [1]"),
        ("a\x00b", "not text"),
        ("base: 3\n", "bad.yaml, line 1: base: expected the name of a recipe, got 3"),
        ("base: dim_locla\n", "line 1: base: unknown recipe 'dim_locla'; did you mean 'dim_local'?"),
        ("base: nowhere.yaml\n", "bad.yaml, line 1: base: no file"),
        ("base: bad.yaml\n", "inherit from each other in a circle: bad.yaml -> bad.yaml"),
        ("base: dim_local\nbatch: 12.5\n", "line 2: batch: expected a whole number above 0, got 12.5"),
        ("base: dim_local\nlr: 1\n", "bad.yaml, line 2: lr: unknown key; did you mean 'optimizer.lr'?"),
        ("batch: 64\n", f"bad.yaml: task: missing, expected {TASKS}"),
        ("task: pretrain\n", "bad.yaml: batch: missing, expected a whole number above 0 (and "),
        ("task: evaluate\n", "bad.yaml: from: missing, expected text"),
        ("task: [1]\n", f"bad.yaml, line 1: task: expected {TASKS}, got [1]"),
        ("base: dim_local\ngroups: {norm: null}\n", "groups.norm: expected a whole number above 0, got null"),
        ("base: dim_local\nsave: 5\n", "save: expected a section with keys every, keep, keep_every, got 5"),
        ("base: dim_local\ndata: {views: []}\n", "data.views: expected a list of one or more sections"),
        ("base: dim_local\nevaluate: {base: x}\n", "evaluate.base: unknown key"),
        ("base: dim_local\ndata:\n  views:\n    2: {}\n", "bad.yaml: data.views.2: the list data.views has"),
        ("base: dim_local\nsaev: {}\n", "bad.yaml: saev: unknown key; did you mean 'save'?"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file(tmp_path, text, message):
    assert message in mistake(write(tmp_path, "bad", text))


def test_a_key_by_both_its_names_in_one_tree(tmp_path):
    why = "data.patience: the old name of data.retry_seconds, which is set as well; leave one out"
    both = write(tmp_path, "both", "base: dim_local\ndata:\n  retry_seconds: 1\n  patience: 1\n")
    assert mistake(both) == f"both.yaml, line 4: {why}"
    assert mistake(write(tmp_path, "heir", "base: both.yaml\n")) == f"both.yaml, line 4: {why}"
    words = ("recipe=dim_local", "data.retry_seconds=1", "data.patience=2")
    assert (
        mistake(*words) == mistake(words[0], "data={patience: 1, retry_seconds: 2}") == f"command line: {why}"
    )
    (tmp_path / "recipe.yaml").write_text((tmp_path / "both.yaml").read_text())
    with pytest.raises(UserError, match=rf"{tmp_path}/recipe.yaml: recipe.yaml, line 4: {why}"):
        load_saved(tmp_path / "recipe.yaml")


def test_an_old_name_is_as_strict_as_the_new_one():
    message = mistake("recipe=dim_local", "data.patience=-1")
    assert message == "command line: data.retry_seconds: expected a number of at least 0, got -1"
    assert mistake("recipe=dim_local", "data={}", "data.patience.x=1").startswith(
        "command line: data.retry_sec"
    )
    assert "data: expected a section" in mistake("recipe=dim_local", "data=5")


def test_a_section_from_two_places_is_blamed_on_the_command_line(tmp_path):
    good = write(tmp_path, "good", "base: dim_local\ndata: {views: [{crop: {scale: {low: 0.2, high: 1}}}]}\n")
    message = mistake(good, "data.views.0.crop.scale.low=2")
    assert message == "command line: data.views.0.crop.scale: low (2.0) must not exceed high (1.0)"
    message = mistake(good, "data.views.0.crop.scale.high=0.1")
    assert message == "command line: data.views.0.crop.scale: low (0.2) must not exceed high (0.1)"


def test_a_circle_of_three_names_all(tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "b")):
        argument = write(tmp_path, name, f"base: {base}.yaml\n")
    assert "circle: b.yaml -> c.yaml -> b.yaml" in mistake(argument.replace("c.yaml", "a.yaml"))


def test_a_file_that_is_no_text_or_no_file(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.yaml").mkdir()
    assert "not text in UTF-8" in mistake(f"recipe={tmp_path}/bytes.yaml")
    assert "cannot be read" in mistake(f"recipe={tmp_path}/folder.yaml")
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read: No such file"):
        load_saved(tmp_path / "nothing.yaml")
    (tmp_path / "recipe.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=rf"{tmp_path}/recipe.yaml: recipe.yaml, line 2: .* run's folder"):
        load_saved(tmp_path / "recipe.yaml")


# ---- mistakes on the command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.lr=fast", "optimizer.lr: expected a number above 0, or null, got 'fast'"),
        ("optimizer.lr=0", "optimizer.lr: expected a number above 0, or null, got 0"),
        ("optimizer.lr=true", "optimizer.lr: expected a number above 0, or null, got true"),
        ("optimizer.lr=.inf", "optimizer.lr: expected a number above 0, or null, got .inf"),
        ("optimizer.lr=.nan", "optimizer.lr: expected a number above 0, or null, got .nan"),
        ("optimizer.lr.x=1", "optimizer.lr: expected a number above 0, or null, got {x: 1}"),
        ("batch=true", "batch: expected a whole number above 0, got true"),
        ("batch=1.5", "batch: expected a whole number above 0, got 1.5"),
        ("batch=null", "batch: expected a whole number above 0, got null"),
        ("batch=[64]", "batch: expected a whole number above 0, got [64]"),
        ("images=50_000", "images: expected a whole number above 0, got '50_000'; write 50000"),
        ('images="50"', "images: expected a whole number above 0, got '50'; write 50"),
        ("seed=-1", "seed: expected a whole number of at least 0, got -1"),
        ("data.root=5", "data.root: expected text, got 5; text that looks like a number"),
        ("data.root=010", "got 010; text that looks like a number or a word of YAML is quoted: 'data.root="),
        ("data.root=true", "data.root: expected text, got true"),
        ("data.views.0.flip=1.5", "data.views.0.flip: expected a number from 0 to 1, got 1.5"),
        ("data.views.0.flip=true", "data.views.0.flip: expected a number from 0 to 1, got true"),
        ("data.views.3.flip=1", "data.views.3: the list data.views has 1 item(s), counted from 0"),
        ("data.views.2={}", "data.views.2: the list data.views has 1 item(s), counted from 0"),
        ("data.zzz={}", "data.zzz: unknown key; expected root, source"),
        ("data.views.flip=1", "give a list, or address an item as data.views.0"),
        ("data.views.0.crop.scale={low: 2, high: 1}", "crop.scale: low (2.0) must not exceed high (1.0)"),
        ("data.views.0.crop={ratio: {low: 1}}", "data.views.0.crop.scale: missing, expected a section"),
        ("optimizer.betas=[0.9]", "betas: expected a list of 2 numbers from 0 to below 1, got [0.9]"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1: expected a number from 0 to below 1, got 1"),
        ("optimizer.betas=[0.9, .inf]", "optimizer.betas.1: expected a number from 0 to below 1, got .inf"),
        ("encoder.channels=[8]", "channels: expected a list of 2 to 5 whole numbers above 0, got [8]"),
        ("groups.negatives=globl", "or 'global', or null, got 'globl'; did you mean 'global'?"),
        ("groups.negatives=0", "expected a whole number above 0 or 'global', or null, got 0"),
        ("objective.bound=smile", "objective.bound: expected 'jsd', 'infonce', 'dv' or 'nwj', got 'smile'"),
        ("objective.beta=0", "objective: alpha and beta are both 0: nothing ties y to the image"),
        ("objective.global_critic.score=dot", "unknown key; it belongs to objective.global_critic.kind dot"),
        ("evaluate.at_end=yes", "evaluate.at_end: expected true or false, got 'yes'"),
        ("evaluate.at_end=1", "evaluate.at_end: expected true or false, got 1"),
        ("evaluate.linear=3", "evaluate.linear: expected a section with keys l2, iterations, or null, got 3"),
        (
            "encoder=dim",
            "encoder: expected a section with keys kind, channels, fc, y, norm, depth, width, stem, local, "
            "zero_init_residual, w, patch, halvings, cells, tower, decoder_tower, expansion, latent, layout, "
            "got 'dim'",
        ),
        ("schedule=cosine", "schedule: expected a section with keys kind, warmup, final, got 'cosine'"),
        ("schedule.kind=3", "schedule.kind: expected 'constant' or 'cosine', got 3"),
        ("schedule.final=0.5", "schedule.final: unknown key; it belongs to schedule.kind cosine"),
        ("run=a/b", "run: expected a name of at most 100 letters"),
        ("run=", "run: expected a value after '='"),
        ("run=@x", "not valid YAML: found character '@' that cannot start any token, in 'run=@x'; text"),
        ("run=!!str x", "the tag !!str is refused"),
        ("schedule={kind: cosine, kind: cosine}", "duplicate key 'kind'"),
        ("lr=1", "lr: unknown key; did you mean 'optimizer.lr'?"),
        ("flip=1", "flip: unknown key; did you mean 'data.views.0.flip'?"),
        ("encoder.units=1", "encoder.units: unknown key; did you mean 'objective.critic.units'?"),
        ("train=x", "train: unknown key; did you mean 'data.train'?"),
        ("objective.zzz=1", "objective.zzz: unknown key; expected kind, bound, alpha, beta, gamma"),
        ("recip=x", "recip: unknown key; did you mean 'recipe'?"),
        ("--optimizer.lr=1", "--optimizer: unknown key; did you mean 'optimizer'?"),
        ("lr", "expected key=value, such as optimizer.lr=3e-4, got 'lr'"),
        ("a..b=1", "expected key=value"),
        ("=1", "expected key=value"),
        ("dim_local", "got 'dim_local'; did you mean 'recipe=dim_local'?"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(argument, message):
    whole = mistake("recipe=dim_local", argument)
    assert whole.startswith("command line: ")
    assert message in whole
    assert "more mistake" not in whole


def test_several_mistakes_are_counted_and_unknown_keys_come_first():
    message = mistake("recipe=dim_local", "batch=x", "optimizer.lr=-1", "momentun=1")
    assert "momentun: unknown key" in message
    assert message.endswith("(and 2 more mistakes)")
    assert mistake("recipe=dim_local", "batch=x", "images=y").endswith("(and 1 more mistake)")


def test_no_recipe_and_unknown_recipes():
    assert re.search(
        r"no recipe given; expected recipe=NAME, .* one of the \d+ that --list prints", mistake()
    )
    assert "did you mean 'recipe'?" in mistake("recip=dim_local")
    assert "did you mean 'recipe'?" in mistake("--recipe=dim_local")
    assert "no file 'dim_local.yaml'; did you mean 'dim_local'?" in mistake("recipe=dim_local.yaml")
    assert "unknown recipe 'zzz'; expected one of the " in mistake("recipe=zzz")
    assert "unknown recipe 'launch/ddp'" in mistake("recipe=launch/ddp")
    assert "no file '/zzz/zzz.yaml'" in mistake("recipe=/zzz/zzz.yaml")


def test_a_key_dropped_by_another_kind_says_why_it_is_missing():
    message = mistake("recipe=dim_local", "optimizer.kind=adamw")
    assert message.startswith("command line: optimizer: no learning rate: expected lr, or lr_per_256")
    assert "optimizer.kind went from adam to adamw, which drops the keys it inherited" in message


# ---- mistakes in recipes of diffusion --------------------------------------------------------------

PIXELS = "data={root: x, source: digits, size: 16, views: [{flip: 0.5}]}"
SAMPLES = "expected either from=RUN, whose latents are drawn, or data, whose images are"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["from=null"], f"{SAMPLES}; neither is given"),
        ([PIXELS], f"{SAMPLES}; both are given"),
        ([PIXELS, "data=null", "from=null"], f"{SAMPLES}; neither is given"),
        ([PIXELS, "from=null", "checkpoint=5"], "checkpoint=5 is one of the run in `from`, and none is"),
        (["data=5"], "data: expected a section with keys root, source, make, train, labelled, "),
        (["data.root=x"], "data.source: missing, expected 'digits', 'cifar10', "),
        (["data.sise=5"], "data.sise: unknown key; did you mean 'size'?"),
        ([PIXELS, "from=null", "data.views=[{}, {}]"], "data.views describes 2 views; a denoiser reads 1"),
        (["objective.kind=moco"], "objective.kind: expected 'diffusion', got 'moco'"),
        (["evaluate.knn.k=3"], "evaluate.knn: unknown key; expected every, at_end, samples, rows"),
        (["evaluate.rows=[tests]"], "got 'tests'; did you mean 'test'?"),
        (["evaluate.extractor=efficientnet"], "evaluate.extractor: expected efficientnet_lite0, "),
        (["evaluate.sha256=ab"], "evaluate.sha256: expected 64 hexadecimal digits"),
        (["draw.eta=2"], "draw.eta: expected a number from 0 to 1, got 2"),
        (["draw.eta=0.5"], "draw.eta=0.5: noise is added in steps of ddim alone, not of flow"),
        (["task=difuse"], f"task: expected {TASKS}, got 'difuse'; did you mean 'diffuse'?"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_of_diffusion(arguments, message):
    line = mistake("recipe=diffuse_cifar10", *arguments)
    assert message in line
    assert line.startswith("command line: ")


def test_a_list_may_be_null_or_empty():
    words = ["evaluate.denoiser_features={}", "objective.map.attention=[]", "evaluate.rows=[]"]
    loaded = load(["recipe=ddim_cifar10", *words])
    assert loaded.recipe.evaluate.denoiser_features.layers is None
    assert (loaded.recipe.objective.map.attention, loaded.recipe.evaluate.rows) == ([], [])
    assert "\n    attention: []" in loaded.text()


def test_samples_may_go_from_latents_to_images_and_back():
    pixels = load(["recipe=diffuse_cifar10", PIXELS, "from=null"]).recipe
    assert (pixels.from_, pixels.data.views[0].flip) == (None, 0.5)
    latents = ["data=null", "from=y", "evaluate.denoiser_features=null", "evaluate.inversion=null"]
    assert load(["recipe=ddim_cifar10", *latents]).recipe.data is None
