"""The command `hybrid-infomax check`."""

from data_pipelines.common.arguments import HELP_WORDS, MISTAKE, help_page

PROGRAM = "hybrid-infomax check"
HELP = help_page(
    "Looks at a job before it queues, where sbatch would be called, and prints a line for each thing: the "
    "script and its options, how the batch divides over the ranks, the memory of a rank, the engine, the "
    "site's file, the log, the run's folder, the data set, MLflow, and what sbatch --test-only says. Nothing "
    "is submitted, and nothing is written.",
    [f"{PROGRAM} SCRIPT [--nodes N] [--gpus M] [OPTION ...] [card=GB] [KEY=VALUE ...]"],
    {
        "SCRIPT": "a job of slurm/ such as slurm/hybrid_imagenet.sh",
        "--nodes N": "nodes, also as nodes=N; default: the script's",
        "--gpus M": "GPUs of each node, also as gpus=M or --gpus-per-node=M; default: the script's",
        "OPTION": "any other of sbatch's, in full, such as --time=24:00:00 or --export=ALL,ENGINE=zero2",
        "card=GB": "memory of a GPU: what does not fit is refused",
        "KEY=VALUE": "the words of the job: any key of the recipe, recipe=NAME, run=NAME",
    },
    [
        f"{PROGRAM} slurm/hybrid_imagenet.sh --nodes 16 --gpus 8 card=80",
        f"{PROGRAM} slurm/dim_local.sh --time=06:00:00 recipe=dim_local_paper run=paper",
    ],
    {
        0: "nothing speaks against it; the last line is the command that submits it",
        2: f"a line on stderr for each thing that would end the job, or {MISTAKE}",
    },
)


def main(words: list[str]) -> int:
    """The command; its exit status. Raises UserError for words that are not understood."""
    if HELP_WORDS & set(words):
        print(HELP)
        return 0
    from trainer.tasks.submission import checks, job

    return checks.run(job.read(words))
