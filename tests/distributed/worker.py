"""What the tests of several ranks run on each rank, through the real launcher: worker.py JOBS.json

A job says which recipe, and what to do with it; rank 0 writes what came out of all of them.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from data_pipelines.dataset import load_dataset
from trainer import recipe_loading
from trainer.runtime import collectives, launch
from trainer.training import Training


def main(file: Path) -> None:
    jobs = json.loads(file.read_text())
    place = launch.start("float32")
    torch.set_num_threads(1)
    assert place.engine == ("ddp" if place.world > 1 else "single process")
    results = {job["name"]: run(job, place, file.parent) for job in jobs}
    if place.main:
        file.with_name(f"results-{place.world}.json").write_text(json.dumps(results))
    launch.leave(0)


def run(job: dict, place: launch.Place, folder: Path) -> dict:
    recipe = recipe_loading.load(job["recipe"]).recipe
    dataset = load_dataset(recipe.data.root)
    out = {}

    if "free" in job["do"]:  # a run of `steps` steps, and what it saw
        training = Training(recipe, place, dataset)
        out["losses"], out["ids"] = [], []
        follow_ids(training, out["ids"])
        for step in range(job["steps"]):
            if step in job.get("keep", ()) and place.world == 1:
                save_file(host(training.state()), folder / f"step-{step}.safetensors")
            out["losses"].append(mean_loss(training.step()))
        training.close()

    if "one step" in job["do"]:  # from the states that one process kept
        out["one step"] = []
        for step in job["from"]:
            saved = load_file(folder / f"step-{step}.safetensors")
            training = Training(recipe, place, dataset, saved, step * recipe.batch)
            loss = mean_loss(training.step())
            gradient = torch.cat([p.grad.flatten() for p in training.objective.parameters()])
            training.close()
            out["one step"].append(loss)
            if place.main:
                save_file({"gradient": gradient}, folder / f"gradient-{step}-of-{place.world}.safetensors")

    if "resume" in job["do"]:  # stop after every step, go on, compare bits with the undisturbed run
        training, states = Training(recipe, place, dataset), []
        for _ in range(job["steps"]):
            states.append(host(training.state()))
            training.step()
        final = host(training.state())
        training.close()
        out["different"] = []
        for step, saved in enumerate(states):
            training = Training(recipe, place, dataset, saved if step else None, step * recipe.batch)
            while training.images < job["steps"] * recipe.batch:
                training.step()
            ended = host(training.state())
            training.close()
            equal = ended.keys() == final.keys() and all(torch.equal(ended[k], final[k]) for k in final)
            out["different"] += [] if equal else [step]
        out["tensors"] = len(final)

    if place.world > 1:  # what each rank found, in the order of the ranks
        parts = [None] * place.world
        torch.distributed.all_gather_object(parts, [out.get("ids"), out.get("different")])
    else:
        parts = [[out.get("ids"), out.get("different")]]
    out["ids"], out["different"] = [ids for ids, _ in parts], [steps for _, steps in parts]
    return out


def follow_ids(training: Training, ids: list) -> None:
    """Notes which samples this rank trains on, and where in the run they stand."""
    loader = training.loader

    class Noted:
        def __iter__(self):
            return self

        def __next__(self):
            batch = next(loader)
            ids.append([batch.ids.tolist(), batch.positions.tolist()])
            return batch

        def __getattr__(self, name):
            return getattr(loader, name)

    training.loader = Noted()


def mean_loss(values: dict) -> float:
    return collectives.mean(values["loss"].double()).item()


def host(state: dict) -> dict:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
