"""The tested versions: those of a machine with NVIDIA GPUs are the CPU's, with torch's other build."""

import importlib.metadata

from packaging.requirements import Requirement

from tests.helpers import ROOT

CUDA_ALONE = {"cuda-bindings", "cuda-pathfinder"}  # what torch's CUDA build needs and leaves open


def pins(name: str) -> dict[str, list[Requirement]]:
    """Package -> its lines, with their markers."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and line[0] != "#":
            requirement = Requirement(line)
            found.setdefault(requirement.name, []).append(requirement)
    return found


def test_the_two_files_agree_on_all_but_torch():
    cpu, cuda = pins("constraints.txt"), pins("constraints-cu13.txt")
    assert {name for name in cuda if name not in cpu} <= CUDA_ALONE
    assert set(cuda) >= CUDA_ALONE
    assert {name for name in cpu if name not in cuda} == set()
    assert [name for name in cpu if cpu[name] != cuda[name]] == ["torch"]


def test_torch_is_the_same_version_in_another_build():
    (cpu,), (cuda,) = pins("constraints.txt")["torch"], pins("constraints-cu13.txt")["torch"]
    version = str(cpu.specifier).removeprefix("==")
    builds = [f"{version}{build}" for build in ("", "+cpu", "+cu130")]
    assert [one for one in builds if cpu.specifier.contains(one)] == builds
    assert [one for one in builds if cuda.specifier.contains(one)] == [builds[0], builds[2]]


def test_all_that_dali_decodes_with_is_pinned():
    """Its metadata pins nvcomp alone; another version of a decoder can decode to other pixels."""
    cuda, needed = pins("constraints-cu13.txt"), []
    for package in ("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13"):
        for line in importlib.metadata.requires(package) or ():
            requirement = Requirement(line)
            if requirement.name.startswith("nvidia-"):
                needed.append(requirement.name)
                (pin,) = cuda[requirement.name]
                assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), line
    assert {"nvidia-nvjpeg", "nvidia-nvtiff-cu13", "nvidia-libnvcomp-cu13"} <= set(needed)
    for name in needed:
        assert str(cuda[name][0].specifier) == f"=={importlib.metadata.version(name)}"
