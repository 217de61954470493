"""`auto` at real starts: written resolved, kept by every later start, and refused where a machine cannot."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.command_lines import mistake, script, tiny
from trainer.recipe.automatic import Facts, Split
from trainer.recipe.loading import load_saved
from trainer.runs import machine

H100 = Facts("cuda", (9, 0), 80 * 2**30)
T4 = Facts("cuda", (7, 5), 16 * 2**30)


def as_if(monkeypatch, facts: Facts) -> None:
    """The rules see other facts; the run still trains on this machine's processor."""
    monkeypatch.setattr(machine, "facts", lambda device, split=None: facts)


def test_the_facts_of_a_processor():
    facts = machine.facts(torch.device("cpu"), Split(3))
    assert (facts.device, facts.capability, facts.split) == ("cpu", (0, 0), Split(3))
    assert facts.memory > 2**28
    assert facts.tiles == ("amx_bf16" in Path("/proc/cpuinfo").read_text().split())


def test_the_facts_of_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    properties = type("Properties", (), {"total_memory": 24 * 2**30})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    expected = Facts("cuda", (8, 6), 24 * 2**30, split=Split(7, 84))
    assert machine.facts(torch.device("cuda:1"), Split(7, 84)) == expected


@pytest.mark.slow
def test_a_run_keeps_what_its_first_start_resolved(capsys, tmp_path, digits, monkeypatch):
    """On a processor, then "on a GPU": the run stays what it is. Its twin began with the explicit word."""

    def start(*words: str):
        return script(capsys, *tiny(tmp_path, digits.root, *words))

    twin = start("precision=float32", "run=twin")
    first = start("precision=auto", "run=a", "images=128")
    assert (twin.status, first.status) == (0, 0), (twin.err, first.err)
    assert ", cpu, float32" in first.out
    folder = tmp_path / "a"
    assert load_saved(folder / "recipe.yaml").recipe.precision == "float32"
    assert "auto, for a cpu at the first start" in (folder / "recipe.yaml").read_text()
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    parameters = [line["value"] for line in lines if line.get("key", line.get("name")) == "precision"]
    assert parameters == ["float32"]

    with monkeypatch.context() as patch:
        as_if(patch, H100)  # where a first start would take bf16
        assert start("precision=auto", "run=a").status == 0
    assert "auto, as at the first start" in (folder / "recipe.yaml").read_text()
    paths = [run / "export" / "encoder.safetensors" for run in (folder, tmp_path / "twin")]
    weights, expected = map(load_file, paths)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())

    assert "is finished" in start("precision=float32", "run=a").out
    assert "is finished" in start("precision=auto", "run=a").out
    refused = mistake(start("precision=bf16", "run=a"))
    assert "precision: 'float32' -> 'bf16'" in refused
    assert "continue it with precision=float32" in refused


def test_a_run_in_bf16_is_refused_on_a_card_without_it(capsys, tmp_path, digits, monkeypatch):
    words = tiny(tmp_path, digits.root, "precision=auto")
    with monkeypatch.context() as patch:
        as_if(patch, H100)
        assert "auto       precision=bf16" in script(capsys, *words, "--plan").out
    as_if(monkeypatch, T4)
    assert "auto       precision=float32" in script(capsys, *words, "--plan").out
    assert "this GPU has no bf16" in mistake(script(capsys, *words, "precision=bf16"))
    assert not list(tmp_path.iterdir())
