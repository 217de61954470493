"""Every job of slurm/: clean, accepted by Slurm, its recipe that of the pages; two that pretrain nothing."""

import re
import shutil
import subprocess

import pytest

from tests.helpers import ROOT
from tests.helpers.latent_runs import OF_IMAGES, diffuse
from tests.helpers.readme_checks import JOBS
from tests.helpers.slurm.small_runs import arguments, continued_once, is_training
from trainer.recipe.loading import load

NO_JOBS = {"chain.sh", "common.sh", "inside.sh", "node.sh", "node_check.sh", "site.example.sh"}
SCRIPTS = sorted({path.name for path in (ROOT / "slurm").glob("*.sh")} - NO_JOBS)
WITHOUT_RECIPE = {"mlflow_server.sh", "shard_imagenet.sh"}


def test_scripts_are_clean():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck missing: apt-get install shellcheck")
    scripts = [*(ROOT / "slurm").glob("*.sh"), ROOT / "tests/slurm/cluster.sh"]
    done = subprocess.run(["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - WITHOUT_RECIPE))
def test_the_recipe_where_none_is_named(script):
    text = (ROOT / "slurm" / script).read_text()
    (recipe,) = re.findall(r'^(?:on_one_node|over_nodes) (\w+) "\$@"', text, re.MULTILINE)
    assert recipe == JOBS[f"slurm/{script}"]
    assert load([f"recipe={recipe}"]).name == recipe


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_it(slurm, script):
    """The nodes pretend to have four GPUs and eight cores."""
    slurm("sbatch", "--test-only", "--gpus-per-node=4", "--cpus-per-task=8", f"slurm/{script}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_it_at_sixteen_nodes_of_eight_gpus(slurm, script):
    """One node of them, where the script is for one."""
    one = "\nover_nodes " not in (ROOT / "slurm" / script).read_text()
    shape = [f"--nodes={1 if one else 16}", "--gpus-per-node=8", "--cpus-per-task=64"]
    answer = slurm("sbatch", "--test-only", "--partition=large", *shape, f"slurm/{script}")
    assert f"using {64 if one else 1024} processors on nodes c" in answer
    assert "in partition large" in answer


def test_packages_are_unpacked_once_a_node_and_imported_from_there(tmp_path):
    (tmp_path / "site" / "packed").mkdir(parents=True)
    (tmp_path / "site" / "packed" / "__init__.py").touch()
    subprocess.run(["tar", "-C", tmp_path / "site", "-cf", tmp_path / "packages.tar", "."], check=True)
    node = tmp_path / "a node's disk"
    script = """source slurm/inside.sh; local_packages "$1" "$2"
    python -c "import packed; print(packed.__file__)" """
    command = ["bash", "-euc", script, "-", tmp_path / "packages.tar", node]
    starts = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {start.communicate()[0] for start in starts}
    assert [start.returncode for start in starts] == [0, 0, 0]
    (unpacked,) = node.glob("packages-*")
    assert paths == {f"{unpacked}/packed/__init__.py\n"}
    before = (unpacked / "complete").stat().st_mtime_ns
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert (unpacked / "complete").stat().st_mtime_ns == before


def test_a_check_before_a_job_queues_asks_slurm(slurm, tmp_path):
    """Two nodes are there, four are not."""
    words = ["slurm/hybrid_imagenet.sh", "--gpus=1", "--cpus-per-task=2", *arguments(tmp_path), "batch=256"]
    lines = slurm("hybrid-infomax", "check", *words, "nodes=2").splitlines()
    assert lines[-2].startswith("slurm      Job ")
    assert lines[-1].startswith(
        "sound      sbatch --gpus-per-node=1 --cpus-per-task=2 --nodes=2 slurm/hybrid_"
    )
    with pytest.raises(AssertionError, match="error: slurm: sbatch --test-only: allocation failure: "):
        slurm("hybrid-infomax", "check", *words, "nodes=4")


def test_a_diffusion_is_stopped_and_continued(slurm, submit, digits, tmp_path):
    run = tmp_path / "outputs" / "drawn"
    words = [*OF_IMAGES, f"data.root={digits.root}", "images=3200", "save.every=3200", "log.every=128"]
    words += ["evaluate.every=0", "evaluate.at_end=false"]
    job = submit(*diffuse(run, *words), script="diffuse.sh")
    job.until(lambda: is_training(run))
    slurm("scancel", "--signal=USR1", job.id)
    continued_once(run, job)


def test_an_evaluation_leaves_the_files_of_the_training_alone(submit, training, tmp_path):
    """A run that was stopped is evaluated: complete by the launcher's status, and `stopped` stays."""
    run = tmp_path / "outputs" / "quickstart"
    job = submit("images=2560", *training)
    assert job.end() == "COMPLETED", job.text
    (run / "done").rename(run / "stopped")
    job.log.unlink()
    small = [f"evaluate.{probe}=null" for probe in ("linear_sgd", "svm", "mlp", "few_shot")]
    words = [f"from={run}", "tracking.uri=none", *small, "evaluate.controls=false"]
    job = submit(*words, script="evaluate.sh")
    assert job.end() == "COMPLETED", job.text
    assert "complete: evaluate" in job.text
    assert (run / "stopped").exists()
    assert not (run / "done").exists()
