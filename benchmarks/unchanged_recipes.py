"""The runs of benchmarks/unchanged.sh, and their command lines."""

from dataclasses import dataclass

BREAK = "images-000000003072"  # the checkpoint after which half-done runs are ended
COMMON = (
    *("images=6400", "save.every=1500", "save.keep=10", "log.every=200"),
    *("evaluate.every=3000", "evaluate.online_images=400"),
    *("evaluate.linear.iterations=20", "evaluate.mlp.epochs=2", "evaluate.few_shot.draws=2"),
)
UNTRACKED = "tracking.uri=none"
# bf16 is emulated, and ten times as slow, where a processor does not have it: one short run has it.
DRAWN = ("data.root=../data/cifar10", "precision=float32", UNTRACKED)
DIGITS = ("data.root=../data/digits",)
DIM = (
    *(*DRAWN, "save.keep=2", "save.keep_every=2000", "optimizer.clip=1"),
    *("encoder.channels=[32,64,128]", "encoder.fc=256"),  # half as wide: a quarter of the time
)
NARROW = (*DRAWN, "encoder.width=8")
HYBRID = (*DRAWN, "schedule.warmup=1280", "optimizer.clip=1")
BF16 = ("precision=bf16", "images=768", "save.every=256", "log.every=128", "evaluate.every=512")
EVALUATE = (
    *("recipe=evaluate", "evaluate.online_images=400", "evaluate.recalibrate=true"),
    *("evaluate.mlp.epochs=2", "evaluate.few_shot.draws=2", "evaluate.linear.iterations=20"),
    *("evaluate.linear_sgd.epochs=2", "evaluate.svm.runs=2", "evaluate.svm.epochs=2"),
)


@dataclass(frozen=True)
class Run:
    """One run.

    engine: a file of recipes/launch, on two ranks; empty: one process, without a file.
    ended: how OLD's half of it is ended, which NEW continues.
    evaluated: the ranks of the `recipe=evaluate` that reads it.
    fails: it is to end with an error, and what it leaves is compared all the same.
    """

    name: str
    recipe: str
    engine: str = ""
    words: tuple[str, ...] = ()
    ended: str = ""
    evaluated: int = 0
    fails: bool = False

    @property
    def tracked(self) -> bool:
        return UNTRACKED not in self.words

    def command(self, outputs: str = "../runs") -> list[str]:
        own = (f"recipe={self.recipe}", f"outputs={outputs}", f"run={self.name}")
        return launch(self.engine, *own, *COMMON, *self.words)


def launch(engine: str, *words: str) -> list[str]:
    """`accelerate launch` of the entry on one process, or on two under an engine, at a port that is free."""
    options = f"--config_file recipes/launch/{engine}.yaml --num_processes 2 --main_process_port 0".split()
    return ["accelerate", "launch", *(options if engine else []), "trainer/main.py", *words]


DIM_RECIPE, MOCO, POOLED = "dim_complete_small", "moco_cifar10_small", "hybrid_cifar10_pooled_small"
RUNS = [
    Run("quickstart-1", "quickstart", "", DIGITS, evaluated=1),
    Run("quickstart-ddp2", "quickstart", "ddp", (*DIGITS, UNTRACKED)),
    Run("quickstart-failing", "quickstart", "", (*DIGITS, UNTRACKED, "optimizer.lr=1e30"), fails=True),
    Run(f"{DIM_RECIPE}-1", DIM_RECIPE, "", DIM),
    Run(f"{DIM_RECIPE}-ddp2", DIM_RECIPE, "ddp", DIM, evaluated=1),
    Run(f"{MOCO}-1", MOCO, "", NARROW, ended="stop", evaluated=1),
    Run(f"{MOCO}-ddp2", MOCO, "ddp", NARROW, ended="SIGKILL"),
    Run(f"{POOLED}-1", POOLED, "", HYBRID, ended="SIGKILL"),
    Run(f"{POOLED}-ddp2", POOLED, "ddp", HYBRID, ended="SIGTERM"),
    Run(f"{MOCO}-zero1", MOCO, "zero1", NARROW),
    Run(f"{POOLED}-zero3", POOLED, "zero3", HYBRID, ended="stop", evaluated=2),
    Run(f"{POOLED}-fsdp2", POOLED, "fsdp2", HYBRID),
    Run(f"{POOLED}-bf16", POOLED, "", (*HYBRID, *BF16)),
]
