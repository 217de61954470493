"""What an exception of MLflow's says: is the server at fault, and why, in one line without secrets."""

import re

from data_pipelines.common.paths import refusal

NOT_THE_RECORDS_FAULT = (401, 403, 407, 408, 429)  # credentials, time, rate: later it may be accepted
NO_EFFECT = "the answer was good, but {} did not arrive; is it an MLflow, and nothing in between?"


class Outage(Exception):
    """Nothing can be delivered at present; the text is the reason, in one line."""


def without_secrets(text: str) -> str:
    """Removes user and password from the addresses in `text`, also where the password has a / or an @."""
    return re.sub(r"(?<!sqlite)://[^\s'\"]*@", "://", text)


def reason(error: Exception) -> str:
    """An exception of MLflow's as one short line without secrets."""
    if isinstance(error, OSError) and (refused_path := refusal(error)):
        return str(refused_path)
    text = str(error) or type(error).__name__
    known = r"\[Errno -?\d+\] [\w ]+|Read timed out|too many \d+ error responses"
    refused = re.search(known, text)
    line = refused.group() if refused else text.strip().splitlines()[0]
    return without_secrets(line)[:200]


def is_outage(error: Exception) -> bool:
    """Whether an exception means that the server is at fault, and not the record that was sent."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, RequestException):
        status = 503 if error.response is None else error.response.status_code
    else:
        return isinstance(error, Outage)
    return status >= 500 or status in NOT_THE_RECORDS_FAULT
