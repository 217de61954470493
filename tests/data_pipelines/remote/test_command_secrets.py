"""Secrets in the words of a `pipe:` command, which would stay in recipes, messages and MLflow: refused."""

import pytest

from data_pipelines.access import check_root

SECRET = [
    "curl -u me:hush https://host/{}",
    "curl -ume:hush https://host/{}",
    "curl -fsSu me:hush https://host/{}",
    "curl -U me:hush -x proxy https://host/{}",
    "curl --user me:hush https://host/{}",
    "curl --proxy-user=me:hush https://host/{}",
    "curl -H 'Authorization: Bearer hush' https://host/{}",
    "curl -H Authorization:hush https://host/{}",
    "curl -H 'X-Auth-Token: hush' https://host/{}",
    "curl -H 'Cookie: session=hush' https://host/{}",
    "curl --oauth2-bearer hush https://host/{}",
    "wget -O - --user=me --password=hush https://host/{}",
    "wget -O - --http-password hush https://host/{}",
    "get token=hush {}",
    "get --secret hush {}",
    "get api_key=hush {}",
    "get --Api-Key hush {}",
    "env AWS_SECRET_ACCESS_KEY=hush aws s3 cp s3://bucket/{} -",
    "sshpass -p hush ssh host cat {}",
    "lftp -u me,hush host -e 'cat {}'",
    "openssl enc -d -pass pass:hush -in {}",
    "ssh host curl -u me:hush https://host/{}",
    "sh -c 'curl -u \"me:hush\" https://host/{}'",
    "sh -c 'curl -H \"Authorization: Bearer hush\" https://host/{} | zcat'",
]
NONE = [
    "ssh host cat /data/secret/{}",
    "ssh -o PasswordAuthentication=no -i key host cat {}",
    "sshpass -f file ssh host cat {}",
    "curl -sfn https://host:8000/{}",
    "curl --netrc-file netrc https://host/{}",
    "env -u HTTP_PROXY curl https://host/{}",
    "python -u give.py {}",
    "sudo -u me cat {}",
    "docker run -u 1000:1000 -v /data:/data image cat /data/{}",
    "get --token-file file {}",
    "gsutil -u project cat gs://bucket/{}",
    "rclone cat remote:bucket/{}",
    "cat /data/compass:1/tokenizer=2/{}",
    "sh -c 'curl -u \"$ME:$PASSWORD\" https://host/{}'",
    "sh -c 'curl -H \"Authorization: Bearer $TOKEN\" https://host/{}'",
]


@pytest.mark.parametrize("command", SECRET)
def test_a_secret_in_a_command_is_refused_and_not_repeated(command):
    with pytest.raises(ValueError, match=r"must hold no password, token or key") as error:
        check_root(f"pipe:{command}")
    assert "~/.netrc" in str(error.value)
    assert "an environment variable that a script of your own reads" in str(error.value)
    assert "hush" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", NONE)
def test_what_only_looks_like_one_is_taken(command):
    assert check_root(f"pipe:{command}") == f"pipe:{command}"


def test_every_address_of_a_word_is_looked_at():
    with pytest.raises(ValueError, match=r"~/\.netrc") as error:
        check_root("pipe:sh -c 'curl https://host/{} || curl https://me:hush@other/{}'")
    assert "hush" not in str(error.value)
