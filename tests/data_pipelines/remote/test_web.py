"""A data set behind a real web server: the same bytes as from the folder, whatever the server does."""

import json
import re
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import dataset as dataset_module
from data_pipelines.access import Access
from data_pipelines.common.errors import UserError
from data_pipelines.dataset import Dataset, Split, describe
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from data_pipelines.remote import web
from data_pipelines.remote.cache import index_of, tar_of
from tests.helpers.ranged_server import RangedServer, opened, serving
from tests.helpers.tiny_dataset import samples, write_samples

SHARD = "train/000001.tar"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    """40 pictures in 8 shards."""
    return write_samples(tmp_path_factory.mktemp("served"), {"train": samples(40)}, 5)


def contents(dataset: Dataset) -> tuple[list[bytes], bytes]:
    """All images and the index rows, in a random order."""
    reader = Reader(dataset, "train")
    ids = np.random.default_rng(0).permutation(reader.images)
    try:
        return [image.tobytes() for image in reader.read(ids)], reader.entries(ids).tobytes()
    finally:
        reader.close()


def refusal(address: str, cache: Path, **access) -> str:
    """The one line of what cannot be read."""
    with pytest.raises(UserError) as error:
        contents(opened(address, cache, **access))
    assert "\n" not in str(error.value)
    return str(error.value)


def leftovers(cache: Path) -> list[Path]:
    return list(cache.rglob("*.part"))


def test_the_same_bytes_as_from_the_folder(data, server, tmp_path, capsys):
    remote = opened(server.address, tmp_path)
    assert (remote.where, remote.fingerprint) == (server.address, data.fingerprint)
    assert [request.name for request in server.requests] == ["dataset.json"]  # the rest is when it is needed
    for _ in range(2):
        assert contents(remote) == contents(data)
    names = [request.name for request in server.requests]
    assert len(names) == len(set(names)) == 1 + 2 * 8  # once each, the second time from the cache
    for split in data.splits.values():
        for shard in split.shards:
            for file in (index_of(shard), tar_of(shard)):
                assert (remote.root / file.name).read_bytes() == (data.root / file.remote_name).read_bytes()
    assert not leftovers(tmp_path)
    assert capsys.readouterr().err == ""
    assert contents(load_dataset(f"file:{data.root}")) == contents(load_dataset(f"file://{data.root}"))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("break", 0),
        ("break", 5000),
        ("status", 500),
        ("status", 503),
        ("status", 429),
        ("longer", 10),
        ("shorter", 10),
        ("wrong", 0),
        ("endless", 0),
    ],
)
def test_a_server_that_fails_delays_and_changes_nothing(data, tmp_path, capsys, ranges, kind, value):
    with serving(data.root, ranges=ranges) as server:
        for name in (SHARD, "train/000003.npy"):
            server.spoil(name, kind, value, times=2)
        assert contents(opened(server.address, tmp_path)) == contents(data)
        tries = [request for request in server.requests if request.name == SHARD]
    assert len(tries) >= 3
    assert not leftovers(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    whole = (kind, value) == ("break", 5000)  # the index is shorter than that
    assert len(lines) == 2 + 2 * (not whole)  # of each file, when it begins and when it is over
    for began, over in zip(lines[::2], lines[1::2], strict=True):
        assert began.startswith(f"warning: {server.address}/train/00000")
        assert began.endswith("; trying again for 20 s")
        assert over.startswith(began.split()[0] + " " + began.split()[1].rstrip(":"))
        assert re.search(r" can be read again, after [0-9]\.[0-9] s", over)
    if whole:
        assert [request.start for request in tries[1:]] == ([5000, 10000] if ranges else [0, 0])


def test_a_server_that_is_slow_and_down_for_a_while(data, server, tmp_path, capsys):
    server.pause = 0.01
    remote, actual = opened(server.address, tmp_path), []
    reading = threading.Thread(target=lambda: actual.append(contents(remote)))
    reading.start()
    while not server.names(".tar"):
        time.sleep(0.01)
    server.down()
    time.sleep(0.7)
    server.up()
    reading.join(20)
    assert actual == [contents(data)]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert "trying again for 20 s" in lines[0]
    assert "can be read again, after " in lines[1]


def test_a_server_that_never_answers_does_not_hold_up_a_run(data, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(web, "TIMEOUT", 0.3)
    server.spoil(SHARD, "silent")
    assert contents(opened(server.address, tmp_path)) == contents(data)
    assert f"{server.address}/{SHARD} sent nothing for 0.3 s" in capsys.readouterr().err


def test_a_failure_that_lasts_ends_with_one_line(server, tmp_path):
    server.spoil(SHARD, "status", 500, times=1000)
    began = time.monotonic()
    message = refusal(server.address, tmp_path, retry_seconds=0.8)
    assert 0.8 < time.monotonic() - began < 20
    where = f"{server.address}/{SHARD}"
    assert message.startswith(
        f"{where} cannot be fetched (500 Internal Server Error), tried again for 0.8 s; "
    )


def test_the_time_to_retry_is_counted_from_the_last_byte_that_came(data, server, tmp_path):
    size = (data.root / SHARD).stat().st_size
    assert size > 6 * 3000  # each attempt brings so much, after a pause of 0.1 s
    server.spoil(SHARD, "break", 3000, times=size // 3000)
    assert contents(opened(server.address, tmp_path, retry_seconds=0.5)) == contents(data)


@pytest.mark.parametrize(("status", "advice"), [(404, "check data.root"), (403, "~/.netrc"), (410, "check")])
def test_what_the_server_will_not_give(data, server, tmp_path, status, advice):
    """It is said at once when a run starts, and waited for when it runs."""
    server.spoil("dataset.json", "status", status)
    began = time.monotonic()
    message = refusal(server.address, tmp_path, retry_seconds=60)
    assert time.monotonic() - began < 30
    assert message.startswith(f"{server.address}/dataset.json cannot be fetched ({status} ")
    assert advice in message
    server.spoil(SHARD, "status", status, times=2)
    assert contents(opened(server.address, tmp_path / "cache")) == contents(data)
    server.spoil(SHARD, "status", status, times=1000)
    message = refusal(server.address, tmp_path / "other", retry_seconds=0.3)
    assert message.startswith(f"{server.address}/{SHARD} cannot be fetched ({status} ")
    assert advice in message


def test_a_wrong_address_is_said_at_once(server, tmp_path):
    assert refusal(f"{server.address}/elsewhere", tmp_path).startswith(
        f"{server.address}/elsewhere/dataset.json cannot be fetched (404 Not Found); check data.root"
    )
    assert not list(tmp_path.iterdir())


def test_the_description_too_is_waited_for(data, server, tmp_path, capsys):
    server.spoil("dataset.json", "status", 502)
    server.spoil("dataset.json", "break", 100)
    assert opened(server.address, tmp_path).fingerprint == data.fingerprint
    assert len(capsys.readouterr().err.splitlines()) == 2
    server.spoil("dataset.json", "status", 502, times=100)
    assert "dataset.json cannot be fetched (502 Bad Gateway), tried" in refusal(
        server.address, tmp_path, retry_seconds=0.3
    )


# ---- who may read, and where it leads --------------------------------------------------------------


def netrc(monkeypatch, home: Path, text: str) -> None:
    monkeypatch.setenv("HOME", str(home))
    (home / ".netrc").write_text(text)
    (home / ".netrc").chmod(0o600)


def test_credentials_of_netrc_go_to_their_own_host_alone(data, tmp_path, monkeypatch):
    netrc(monkeypatch, tmp_path, "machine 127.0.0.1 login me password hush\ndefault login x password y\n")
    with serving(data.root) as far, serving(data.root) as near:
        near.secret = "Basic bWU6aHVzaA=="
        assert contents(opened(near.address, tmp_path / "direct")) == contents(data)
        near.moved = far.address.replace("127.0.0.1", "localhost")
        assert contents(opened(near.address, tmp_path / "moved")) == contents(data)
        near.moved = far.address  # another server of the same machine
        assert contents(opened(near.address, tmp_path / "beside")) == contents(data)
        assert {request.authorization for request in near.requests} == {near.secret}
        assert {request.authorization for request in far.requests} == {None}
        assert len(far.requests) == 2 * 17
        near.secret, near.moved = "Basic other", None
        message = refusal(near.address, tmp_path / "refused")
    assert "401 Unauthorized" in message
    assert "machine 127.0.0.1 login" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("http://far.example/data", False),
        ("http://10.0.0.1/data", False),
        ("https://far.example/data", True),
        ("http://127.0.0.1:8000/data", True),
        ("http://[::1]/data", True),
    ],
)
def test_no_password_is_sent_where_others_can_listen(tmp_path, monkeypatch, address, sent):
    hosts = ("far.example", "10.0.0.1", "127.0.0.1", "::1")
    netrc(monkeypatch, tmp_path, "".join(f"machine {host} login me password hush\n" for host in hosts))
    request = web._request(f"{address}/dataset.json", address)
    assert request.has_header("Authorization") == sent
    assert ("never sent over http:" in web.Web(address)._refusal(401)) != sent


def test_a_broken_netrc_is_named_without_what_is_in_it(server, tmp_path, monkeypatch):
    netrc(monkeypatch, tmp_path, "machine 127.0.0.1 login me\npasswort hush\n")
    message = refusal(server.address, tmp_path)
    assert message.startswith("~/.netrc cannot be read (line ")
    assert "hush" not in message


def test_the_token_of_a_redirect_is_in_no_message(data, server, tmp_path, capsys):
    with serving(data.root) as far:
        server.moved = far.address
        far.spoil("dataset.json", "status", 503)
        far.spoil(SHARD, "status", 403, times=1000)
        message = refusal(server.address, tmp_path, retry_seconds=0.5) + capsys.readouterr().err
    assert f"{server.address}/{SHARD} cannot be fetched (403 Forbidden)" in message
    assert "hush" not in message
    assert far.address not in message


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        ("file:///etc", "cannot be fetched (302 Found)"),
        ("ftp://127.0.0.1", "redirects to ftp:, expected https"),
        ("http://[", "cannot be fetched ("),
        ("http://a..b", "cannot be fetched ("),
    ],
)
def test_no_redirect_leads_out_of_the_web(server, tmp_path, moved, message):
    server.moved = moved
    assert f"{server.address}/dataset.json {message}" in refusal(server.address, tmp_path)


def test_a_host_that_cannot_be(tmp_path):
    assert refusal("http://a..b/data", tmp_path).startswith(
        "http://a..b/data/dataset.json cannot be fetched ("
    )


def certificate(folder: Path):
    """A server's context with a certificate for 127.0.0.1 that it signed itself, and the file of that."""
    import datetime
    import ipaddress
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(1))
    builder = builder.not_valid_after(now + datetime.timedelta(1))
    place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(place, critical=False).sign(key, hashes.SHA256())
    pem, raw, none = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "key.pem").write_bytes(key.private_bytes(pem, raw, none))
    (folder / "certificate.pem").write_bytes(signed.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context, folder / "certificate.pem"


def test_a_certificate_must_be_valid(data, tmp_path, monkeypatch):
    context, file = certificate(tmp_path)
    with serving(data.root, context=context) as server:
        assert "the server's certificate is not valid" in refusal(server.address, tmp_path / "cache")
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert contents(opened(server.address, tmp_path / "cache")) == contents(data)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("http://me:hush@host/data", "~/.netrc"),
        ("https://hush@host/data", "~/.netrc"),
        ("https://host/data?X-Signature=hush", "no query"),
        ("s3://me:hush@bucket/data", "~/.netrc"),
        ("pipe:curl -s https://me:hush@host/{}", "~/.netrc"),
        ("pipe:curl -s https://host/{}?token=hush", "no query"),
        ("gs://bucket/data", "expected a folder, file:, http://, https://, s3:// or pipe:COMMAND, got gs:"),
        ("http:///data", "expected http://HOST/FOLDER"),
        ("http://host:99999/data", "a port from 1 to 65535"),
        ("file://host/data", "a folder of this machine"),
        ("pipe:cat hush", "expected {}"),
        ("pipe:cat 'hush/{}", "cannot be split"),
    ],
)
def test_an_address_that_is_wrong_or_holds_a_secret(root, message):
    with pytest.raises(UserError, match=r"^data\.root: ") as error:
        load_dataset(root, access=Access(commands=True))
    assert message in str(error.value)
    assert "hush" not in str(error.value)


# ---- descriptions that lie -------------------------------------------------------------------------


def described(root: Path, change) -> RangedServer:
    """A server whose dataset.json was changed in one place; its fingerprint stays right."""
    path = root / "dataset.json"
    description = json.loads(path.read_text())
    change(description, description["splits"]["train"]["shards"][1])
    splits = {
        name: replace(
            dataset_module.Split(part["images"], ()),
            shards=tuple(dataset_module.Shard(**shard) for shard in part["shards"]),
        )
        for name, part in description["splits"].items()
    }
    description["fingerprint"] = dataset_module.fingerprint(splits)
    path.write_text(json.dumps(description))
    return serving(root)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "train/../../../000001.tar"),
        ("name", "../train/000001.tar"),
        ("name", "/etc/000001.tar"),
        ("path", "/etc/passwd"),
        ("path", "-rf"),
        ("path", "a\nb"),
        ("sha256", "../../x"),
        ("index_sha256", "0"),
        ("bytes", -1),
        ("root", "/etc"),
        ("access", {"commands": True}),
        ("remote", "http://host"),
    ],
)
def test_a_description_leads_nowhere_else(data, tmp_path, key, value):
    root, cache = Path(shutil.copytree(data.root, tmp_path / "data")), tmp_path / "cache"

    def change(description: dict, shard: dict) -> None:
        (description if key in ("root", "access", "remote") else shard)[key] = value

    with described(root, change) as server:
        message = refusal(server.address, cache)
        assert message.startswith(f"{server.address}/dataset.json")
        assert [request.name for request in server.requests] == ["dataset.json"]
    assert not cache.exists()


@pytest.mark.parametrize("kind", ["", "endless"], ids=["a length", "no length"])
def test_more_than_was_said_is_never_written(data, tmp_path, kind):
    """What dataset.json says is too short for the real file."""
    root = Path(shutil.copytree(data.root, tmp_path / "data"))
    sizes, stop = [], threading.Event()
    part = tar_of(data.splits["train"].shards[1]).name.rpartition("/")[2] + ".part"

    def watch() -> None:
        while not stop.is_set():
            for path in (tmp_path / "cache").rglob(part):
                with suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)

    with described(root, lambda _, shard: shard.update(bytes=1000)) as server:
        server.spoil(SHARD, kind, times=1000)
        watching = threading.Thread(target=watch)
        watching.start()
        message = refusal(server.address, tmp_path / "cache", retry_seconds=0.5)
        stop.set()
        watching.join()
    assert f"{SHARD} has " in message
    assert "dataset.json says 1,000" in message or "than the 1,000 of dataset.json" in message
    assert max(sizes, default=0) <= 1000


def test_tars_beside_the_folder_are_found_from_there(data, tmp_path):
    root = Path(shutil.copytree(data.root, tmp_path / "served/data"))
    (tmp_path / "served/tars").mkdir()
    (root / SHARD).rename(tmp_path / "served/tars/a b.tar")
    with described(root, lambda _, shard: shard.update(path="../tars/a b.tar")) as server:
        server.root = tmp_path / "served"
        assert contents(opened(f"{server.address}/data", tmp_path / "cache")) == contents(data)
        assert "tars/a b.tar" in server.names()


def test_data_sets_that_split_the_same_shards_otherwise_share_a_cache(tmp_path):
    """Their fingerprints are equal, and so are the lengths of files that differ."""
    parts = samples(8)
    first = write_samples(tmp_path / "a", {"train": parts[:4], "test": parts[4:]}, 2)
    shards = [shard for split in first.splits.values() for shard in split.shards]
    moved = [replace(shard, name=f"test/{number:06d}.tar") for number, shard in enumerate(shards[1:])]
    for split in ("train", "test"):
        (tmp_path / "b" / split).mkdir(parents=True)
    for old, new in zip(shards, [shards[0], *moved], strict=True):
        for suffix in (".tar", ".npy"):
            shutil.copy(
                (tmp_path / "a" / old.name).with_suffix(suffix),
                (tmp_path / "b" / new.name).with_suffix(suffix),
            )
    regrouped = {"train": Split(2, (shards[0],)), "test": Split(6, tuple(moved))}
    (tmp_path / "b/dataset.json").write_text(describe(replace(first, splits=regrouped)))
    with serving(tmp_path) as server:
        for name in ("a", "b"):
            actual = opened(f"{server.address}/{name}", tmp_path / "cache")
            reader, expected = Reader(actual, "test"), Reader(load_dataset(tmp_path / name), "test")
            ids = np.arange(expected.images)
            assert [i.tobytes() for i in reader.read(ids)] == [i.tobytes() for i in expected.read(ids)]
            reader.close()


def test_a_page_that_is_no_description(data, server, tmp_path):
    root = tmp_path / "page"
    root.mkdir()
    for text in ("<html>welcome</html>", "[" * 100_000, "{}", "3"):
        (root / "dataset.json").write_text(text)
        server.root = root
        assert refusal(server.address, tmp_path).startswith(f"{server.address}/dataset.json is broken (")
