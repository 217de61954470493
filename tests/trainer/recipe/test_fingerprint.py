"""What a fingerprint holds, how a difference is shown, and the overrides that lead back to a run's recipe."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.helpers.recipes import NAMES, write
from trainer.recipe import fingerprint as rules
from trainer.recipe.fingerprint import (
    ABSENT,
    default_of_new_key,
    differences,
    overrides_to_continue,
    remedy,
)
from trainer.recipe.loading import load

VIEW = "{crop: {scale: {low: 0.2, high: 1}}, jitter: {hue: 0.1}, flip: 0.5}"
ADAMW = ["optimizer.kind=adamw", "optimizer.lr=1e-4", "optimizer.weight_decay=0.05"]
HYBRID = ["objective={kind: hybrid, omega: 1, contrast: {kind: dim, bound: jsd}}", "encoder={kind: nvae}"]


def test_fingerprint_holds_what_changes_the_weights_and_nothing_else():
    whole = load(["recipe=dim_local"])
    meaningless = {
        "outputs",
        "run",
        "accumulate",
        "data.root",
        "data.make",
        "data.threads",
        "data.prefetch",
        "data.retry_seconds",
        "data.cache",
        "data.cache_bytes",
        "images",
        "step_timeout",
        "deterministic",
        "compile",
        "profile",
    }
    sections = ("save.", "log.", "evaluate.", "tracking.")
    new = {  # all at their defaults
        key
        for key in whole.origin
        if default_of_new_key(key) is not ABSENT and key not in rules.NEW_FOR  # which is old for this kind
    }
    silent = {*meaningless, *new}
    expected = [key for key in whole.origin if key not in silent and not key.startswith(sections)]
    assert sorted(whole.fingerprint()) == sorted(expected)
    assert {"seed", "batch", "groups.norm", "optimizer.lr", "data.views.0.flip", "data.window"} <= set(
        expected
    )

    harmless = [
        "run=again",
        "accumulate=2",
        "data.root=elsewhere",
        "data.make=false",
        "data.retry_seconds=5",
        "save.every=7",
        "tracking.uri=none",
        "images=1",
    ]
    assert load(["recipe=dim_local", *harmless]).fingerprint() == whole.fingerprint()


def test_a_new_key_of_a_list_s_items_is_left_out_at_its_old_meaning(monkeypatch):
    """A key that is in today's schema plays one that a coming schema adds."""
    one = load(["recipe=dim_local", f"data.views=[{VIEW}, {VIEW}]"])
    key = "data.views.1.jitter.hue"
    assert key in one.fingerprint()
    monkeypatch.setitem(rules.DEFAULTS_OF_NEW_KEYS, "data.views.*.jitter.hue", 0.1)
    before = {name: value for name, value in one.fingerprint().items() if not name.endswith("jitter.hue")}
    assert one.fingerprint() == before  # a run of the older version goes on
    other = load(["recipe=dim_local", f"data.views=[{VIEW}, {VIEW}]", f"{key}=0.4"])
    assert differences(before, other.fingerprint()) == [f"{key}: (none) -> 0.4"]
    assert overrides_to_continue(before, other.fingerprint()) == [f"{key}=0.1"]


def test_a_run_that_turned_hue_in_yiq_goes_on(tmp_path):
    """The recipe as it was published before there was the key, and as it is."""
    new = load(["recipe=moco_cifar10"])
    old = load([write(tmp_path, "old", "base: moco_cifar10"), "data.views.0.hue=yiq", "data.views.1.hue=yiq"])
    assert not [key for key in old.fingerprint() if key.endswith(".hue") and "jitter" not in key]
    words = overrides_to_continue(old.fingerprint(), new.fingerprint())
    assert words == ["data.views.0.hue=yiq", "data.views.1.hue=yiq"]
    assert load(["recipe=moco_cifar10", *words]).fingerprint() == old.fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_published_recipes_turn_hue_as_the_publications_do(name):
    views = getattr(getattr(load([f"recipe={name}"]).recipe, "data", None), "views", [])
    assert all(view.hue == ("hsv" if view.jitter else "yiq") for view in views)


def test_a_pooled_run_with_as_wide_a_y_as_w_goes_on():
    """The recipe as it was published before y had a width by itself, and as it is."""
    old = load(["recipe=hybrid_cifar10_pooled", "encoder.y=null"])
    assert "encoder.y" not in old.fingerprint()
    new = load(["recipe=hybrid_cifar10_pooled"])
    assert new.fingerprint()["encoder.y"] == 256
    assert remedy(old.fingerprint(), new.fingerprint()).startswith("continue it with encoder.y=null, or ")
    small = load(["recipe=hybrid_cifar10_pooled_small"])
    assert small.recipe.encoder.y is None
    assert load(["recipe=moco_cifar10"]).fingerprint()["encoder.y"] is None  # an old key of a ResNet


@pytest.mark.parametrize(
    ("recipe", "new", "back"),
    [
        ("moco_cifar10", "objective.final_momentum=0.999", "objective.final_momentum=null"),
        ("hybrid_cifar10", "objective.contrast.final_momentum=0.999", None),
        ("hybrid_cifar10", "objective.decoder_noise=0.2", "objective.decoder_noise=0.0"),
        ("autoencoder_cifar10", "objective.decoder_noise=0.2", "objective.decoder_noise=0.0"),
        ("moco_cifar10", "encoder.w={channels: 3}", "encoder.w=null"),
    ],
)
def test_the_keys_of_part_8_strand_no_run(recipe, new, back):
    old, changed = load([f"recipe={recipe}"]).fingerprint(), load([f"recipe={recipe}", new]).fingerprint()
    assert not [key for key in old if "final_momentum" in key or key.endswith(("decoder_noise", "encoder.w"))]
    back = back or f"{new.partition('=')[0]}=null"
    assert overrides_to_continue(old, changed) == [back]
    assert load([f"recipe={recipe}", new, back]).fingerprint() == old


def test_a_new_section_is_taken_out_again(monkeypatch):
    monkeypatch.setitem(rules.DEFAULTS_OF_NEW_KEYS, "objective.supervised", None)
    old = load(["recipe=dim_local"]).fingerprint()
    assert "objective.supervised" not in old
    new = load(["recipe=dim_local", "objective.supervised={classes: 10}"]).fingerprint()
    assert overrides_to_continue(old, new) == ["objective.supervised=null"]


def test_the_length_of_training_counts_where_the_schedule_depends_on_it():
    cosine = ["recipe=dim_local", "schedule.kind=cosine"]
    old, new = load(cosine).fingerprint(), load([*cosine, "images=1000000"]).fingerprint()
    assert differences(old, new) == ["images: 50000000 -> 1000000"]


@pytest.mark.parametrize("at", ["objective", "objective.contrast"])
def test_it_counts_too_where_the_momentum_depends_on_it(at):
    moco = "{kind: moco}" if at == "objective" else "{kind: hybrid, omega: 1, contrast: {kind: moco}}"
    words = ["recipe=dim_local", f"objective={moco}", "encoder={kind: nvae}"]
    old, longer = load(words), load([*words, "images=1000000"])
    assert old.fingerprint() == longer.fingerprint()  # the rate and the momentum stay as they are
    rising = [*words, f"{at}.momentum=0.99", f"{at}.final_momentum=0.999"]
    old, longer = load(rising).fingerprint(), load([*rising, "images=1000000"]).fingerprint()
    assert differences(old, longer) == ["images: 50000000 -> 1000000"]


def test_differences_name_key_old_and_new():
    old = load(["recipe=dim_local"]).fingerprint()
    new = load(
        ["recipe=dim_local", "optimizer.lr=1e-3", "schedule={kind: cosine}", "objective.bound=infonce"]
    )
    assert differences(old, old) == []
    lines = differences(old, new.fingerprint())
    assert "optimizer.lr: 0.0001 -> 0.001" in lines
    assert "objective.bound: 'jsd' -> 'infonce'" in lines
    assert "schedule.final: (none) -> 0.0" in lines


# ---- the way back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([], ["optimizer.lr=1e-3"]),
        (["optimizer.lr=1e-3", "optimizer.betas=[0.5, 0.9]"], ["optimizer.betas.0=0.8"]),
        ([], ["optimizer.lr=null", "optimizer.lr_per_256=0.03", "optimizer.scaling=sqrt"]),
        ([], ["optimizer.decay_norms=false"]),
        ([], ADAMW),
        (ADAMW, []),
        (ADAMW, ["optimizer.kind=lars", "optimizer.lr_per_256=0.3"]),
        ([], HYBRID),
        (HYBRID, []),
        (HYBRID, [*HYBRID, "objective.contrast.kind=moco"]),
        (["schedule.kind=cosine"], []),
        ([], ["schedule={kind: cosine, final: 0.1}", "images=1000"]),
        (["schedule.kind=cosine"], ["schedule.kind=cosine", "images=1000"]),
        ([], [f"data.views=[{VIEW}]"]),
        ([], [f"data.views=[{VIEW}]", "data.views.0.hue=hsv"]),
        ([f"data.views=[{VIEW}]", "data.views.0.hue=hsv"], []),
        ([f"data.views=[{VIEW}]", "data.views.0.hue=hsv"], [f"data.views=[{VIEW}]"]),
        ([], ["data.views.0.jitter={hue: 0.1}"]),
        ([f"data.views=[{VIEW}]"], []),
        ([f"data.views=[{VIEW}]"], ["data.views.0.crop={scale: {low: 0.5, high: 1}}"]),
        ([f"data.views=[{VIEW}, {VIEW}]"], []),
        ([], [f"data.views=[{VIEW}, {VIEW}]"]),
        ([f"data.views=[{VIEW}, {VIEW}]"], [f"data.views=[{VIEW}, {{flip: 1}}]"]),
        (["objective.supervised={classes: 10}"], []),
        ([], ["objective.supervised={classes: 10}"]),
        (["data.labelled='1e3'", "encoder.channels=[8, 16, 32]"], []),
    ],
    ids=lambda words: " ".join(words)[:40] or "as published",
)
def test_the_overrides_lead_back(old, new):
    """Typed behind the command that was refused, with nothing but what a manifest of JSON keeps."""
    before = json.loads(json.dumps(load(["recipe=dim_local", *old]).fingerprint()))
    now = load(["recipe=dim_local", *new]).fingerprint()
    assert differences(before, now)
    words = overrides_to_continue(before, now)
    assert load(["recipe=dim_local", *new, *words]).fingerprint() == before
    line = remedy(before, now)
    assert line.startswith("continue it with ")
    assert line.endswith(", or start another with run=NAME")
    typed = line.removeprefix("continue it with ").removesuffix(", or start another with run=NAME")
    assert shlex.split(typed) == words


def test_the_overrides_are_those_that_are_needed():
    old = load(["recipe=dim_local"]).fingerprint()
    new = load(["recipe=dim_local", "optimizer.lr=1e-3", "batch=256", "images=5"]).fingerprint()
    assert overrides_to_continue(old, new) == ["batch=512", "optimizer.lr=0.0001"]
    assert (
        remedy(old, new) == "continue it with batch=512 optimizer.lr=0.0001, or start another with run=NAME"
    )
    assert overrides_to_continue(old, old) == []


@pytest.mark.parametrize("gone", ["old", "new"])
def test_no_override_is_promised_for_a_key_that_one_version_lacks(gone):
    sides = {side: load(["recipe=dim_local"]).fingerprint() for side in ("old", "new")}
    del sides[gone]["objective.beta"]
    assert overrides_to_continue(**sides) == []
    assert remedy(**sides) == "start another with run=NAME"


OLDEST = yaml.safe_load(Path(__file__).with_name("oldest_fingerprints.yaml").read_text())
ANEW = {
    "encoder.y",
    "data.views.0.hue",
    "data.views.1.hue",
}  # whose new values recipes of that time now carry


@pytest.mark.parametrize("name", OLDEST["recipes"])
def test_a_new_key_at_its_default_strands_no_run_of_the_oldest_version(name):
    """A key that DEFAULTS_OF_NEW_KEYS does not know would stand in the fingerprint, and differ."""
    assert set(load([f"recipe={name}"]).fingerprint()) <= {*OLDEST["keys"], *ANEW}
