"""Addresses of MLflow: which a recipe may have, and the commands that are printed for them."""

import pytest
from pydantic import ValidationError

from data_pipelines.common.errors import UserError
from trainer.recipe.schema import Tracking
from trainer.tracking.address import open_command, uri_for


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = uri_for(None, "out puts")
    assert database == f"sqlite:///{tmp_path}/out puts/mlflow.db"
    assert uri_for("sqlite:///my.db", "outputs") == f"sqlite:///{tmp_path}/my.db"
    assert uri_for("http://host:5000/", "outputs") == "http://host:5000"
    assert uri_for("none", "outputs") is None
    assert (
        open_command(database) == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/out puts/mlflow.db'"
    )
    assert open_command("https://me:secret@host:5000") == "https://host:5000"


@pytest.mark.parametrize(
    "uri",
    ["localhost:5000", "./mlruns", "http://", "sqlite://", "file:///x", "ftp://a:b@c", "ftp://c?t=a:b", ""],
)
def test_what_is_no_address_is_one_line(uri):
    with pytest.raises(UserError, match=r"tracking.uri: .* is no address") as caught:
        uri_for(uri, "outputs")
    assert "a:b" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://h:5000/?token=hush", "https://h/#hush", "http://me:hush@h"])
def test_an_address_with_what_may_be_a_secret_is_refused_and_not_repeated(uri):
    for refuse in (lambda: uri_for(uri, "outputs"), lambda: Tracking(uri=uri)):
        with pytest.raises((UserError, ValidationError), match="export MLFLOW_TRACKING_USERNAME") as caught:
            refuse()
        if isinstance(caught.value, UserError):  # pydantic's own text is never shown
            assert "hush" not in str(caught.value)
            assert "\n" not in str(caught.value)
