"""The command that delivers journals to MLflow later: python -m trainer.tracking sync DIR"""

import sys
from pathlib import Path

import yaml

from data_pipelines.common.arguments import MISTAKE, Parser, help_page
from data_pipelines.common.errors import UserError
from data_pipelines.common.output import outlive_readers
from data_pipelines.common.paths import refused_paths
from trainer.recipe.schema import NO_SECRETS, Tracking
from trainer.tracking import mlflow_store, outage
from trainer.tracking.address import uri_for
from trainer.tracking.delivery import Delivery

PROGRAM = "python -m trainer.tracking"
ARGUMENTS = {
    "DIR": "the folder of outputs, or one run in it",
    "--uri ADDRESS": "MLflow's, http(s)://HOST:PORT or sqlite:///FILE; default: the recipe's, or the file "
    "mlflow.db beside the runs. Credentials come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
EXAMPLES = [f"{PROGRAM} sync outputs", f"{PROGRAM} sync outputs/dim_local --uri http://mlflow.example:5000"]
STATUS = {0: "nothing is left to deliver", 1: "something is left; run it again later", 2: MISTAKE}
HELP = help_page(
    "Tracking of runs that trained without MLflow: all that they logged is in their journals.",
    [f"{PROGRAM} sync DIR [--uri ADDRESS]"],
    {"sync": "delivers to MLflow what it does not have yet", **ARGUMENTS},
    EXAMPLES,
    STATUS,
)
SYNC_HELP = help_page(
    "Delivers to MLflow what it does not have yet: a line for each run. Nothing is delivered twice.",
    [f"{PROGRAM} sync DIR [--uri ADDRESS]"],
    ARGUMENTS,
    EXAMPLES,
    STATUS,
)


def sync(folder: Path, uri: str | None = None) -> int:
    """Delivers every run in `folder`, which may be a run itself; prints a line for each.

    Args:
        uri: MLflow's address, by default that of the run's recipe, or the SQLite file beside the run.

    Returns:
        The highest status of a run: 0 nothing is left to deliver, 1 something is, 2 its user has to repair
        something first.

    Raises:
        UserError: there is no run, or `uri` is no address.
    """
    if uri is not None and uri_for(uri, folder) is None:
        raise UserError("--uri none: is no address to deliver to; give MLflow's, or leave --uri out")
    mlflow_store.configure()
    is_run = (folder / "journal.jsonl").is_file()
    inside = sorted(folder.iterdir()) if not is_run and folder.is_dir() else []
    runs = [folder] if is_run else [path for path in inside if _may_be_run(path)]
    if not runs:
        raise UserError(
            f"{folder}: holds no run (no journal.jsonl); name the folder of outputs or a run in it"
        )
    down: set[str] = set()
    return max(_status(run, uri, down) for run in runs)


def _may_be_run(folder: Path) -> bool:
    """Whether there is a journal; also where the folder may not be entered, which its delivery will say."""
    try:
        return (folder / "journal.jsonl").exists()
    except OSError:
        return True


def _status(run: Path, uri: str | None, down: set[str]) -> int:
    """Delivers a run; its status. Addresses in `down` have not answered before."""
    try:
        with refused_paths():
            return 0 if _sync_run(run, uri, down) else 1
    except (UserError, OSError) as error:
        print(f"error: {run}: {error}", file=sys.stderr)
        return 2


def _sync_run(run: Path, uri: str | None, down: set[str]) -> bool:
    recipe = _tracking_of(run)
    address = uri_for(uri or (None if recipe.uri == "none" else recipe.uri), run.resolve().parent)
    assert address is not None  # `sync` has refused "none"
    delivery = Delivery(run, address, recipe.experiment, run.resolve().name, print)
    size = delivery.waiting()
    if not size:
        print(f"{run}: nothing new")
        return True
    if address in down:
        print(f"{run}: not delivered either")
        return False
    try:
        delivery.deliver()
    except Exception as error:
        print(f"{run}: not delivered: MLflow at {delivery.address}: {outage.reason(error)}")
        # The other runs do not wait for an address that does not answer.
        if outage.is_outage(error) and not isinstance(error, outage.Outage):
            down.add(address)
        return False
    finally:
        delivery.close()
    if delivery.aside:
        print(f"{run}: delivered to {delivery.address}, but not {len(delivery.aside)} of its artifacts")
        return False
    print(f"{run}: {size} bytes of its journal delivered to {delivery.address}")
    return True


def _tracking_of(run: Path) -> Tracking:
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        return Tracking.model_validate(recipe.get("tracking", {}))
    except FileNotFoundError:
        return Tracking()
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        if NO_SECRETS in str(error):
            raise UserError(f"recipe.yaml: tracking.uri: {NO_SECRETS}") from None
        raise UserError("recipe.yaml is no recipe; put the file back, or remove it") from error


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0 where all is delivered, 1 where something is left, 2 for a user's mistake.

    A mistake in one run (a broken recipe.yaml) does not keep the others from being delivered.
    """
    parser = Parser(prog=PROGRAM, page=HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar="sync")
    command = commands.add_parser("sync", page=SYNC_HELP)
    command.add_argument("folder", metavar="DIR", type=Path)
    command.add_argument("--uri", metavar="ADDRESS")
    try:
        options = parser.parse_args(arguments)
        with refused_paths():
            return sync(options.folder, options.uri)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
