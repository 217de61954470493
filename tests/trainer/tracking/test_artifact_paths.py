"""A journal is a file that others may have written: what it names outside the run's folder stays at home."""

import pytest

from tests.helpers.tracking_runs import Console, client_of, follow, mlflow_run
from trainer.tracking.address import uri_for
from trainer.tracking.journal import Journal


def names(client, run_id, path=None) -> set[str]:
    """Every artifact of a run."""
    paths = set()
    for entry in client.list_artifacts(run_id, path):
        paths |= names(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return paths


@pytest.mark.slow
def test_the_follower_uploads_nothing_from_outside_the_run(outputs):
    uri, run, console = uri_for(None, outputs), outputs / "run", Console()
    secret = outputs / "secret.txt"
    secret.write_text("for nobody else")
    for folder in ("figures", "linked", "good"):
        (run / folder).mkdir(parents=True)
        (run / folder / "own.png").write_bytes(b"picture")
    (run / "figures" / "link.png").symlink_to(secret)
    (run / "linked" / "etc").symlink_to("/etc")
    (run / "alias").symlink_to(outputs)
    journal = Journal(run / "journal.jsonl")
    foreign = ("../secret.txt", str(secret), "figures/../../secret.txt", "figures/link.png", "figures")
    foreign += ("alias", "alias/secret.txt", "..", "/etc/hostname")
    for number, path in enumerate(foreign):
        journal.write("artifact", f"foreign {number}", path, 1)
    journal.write("artifact", "linked", "linked", 1)  # a link to a folder is not entered
    journal.write("artifact", "good", "good", 1)
    follower = follow(run, uri, console)
    assert follower.close()
    journal.close()
    _, tracked = mlflow_run(uri)
    assert names(client_of(uri), tracked.info.run_id) == {"good/own.png", "linked/own.png"}
    assert len(console) == len(foreign)
    assert all("outside the run's folder" in line for line in console)
    stored = [path for path in (outputs / "mlartifacts").rglob("*") if path.is_file()]
    assert not [path for path in stored if b"for nobody" in path.read_bytes()]
