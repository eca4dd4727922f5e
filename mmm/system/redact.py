"""Removes secrets from logs and files: access tokens, passwords in addresses, and environment variables with a secret's name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
SECRETS = re.compile(
    r"\bhf_\w+|(?<=://)[^/@\s]+(?=@)|(?<=[a-z][a-z]:/)[^/@\s]+(?=@)"  # tokens of Hugging Face; the user part of an address
    r"|(?<=[?&])(?:[\w-]*token|sig|signature|X-Amz-[\w-]+|[\w-]*key)=[^&\s]+"  # parameters of a signed address
    r"|(?<=Bearer )\S+|\b(?:AKIA|ghp_|github_pat_|glpat-|sk-)[\w-]{12,}",
    re.IGNORECASE,
)
WORDS = "(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)"
NAMES = re.compile(rf"(?:^|_){WORDS}(?:_|$)", re.IGNORECASE)
# NAME=VALUE, but not a flag such as --encoder.class_token=true
ASSIGNED = re.compile(rf"(?<![\w.-])((?:\w+_)?{WORDS}(?:_\w+)?)=.+", re.IGNORECASE | re.DOTALL)
SHORTEST = 8  # characters of a secret, at least; shorter values could be ordinary words


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replaces the secrets in a text with ***.

    Args:
        text: for instance a log message.
        environment: variables with the name of a secret (HF_TOKEN, WANDB_API_KEY) are replaced. None: those of this process.
    """
    environment = os.environ if environment is None else environment
    for value in {value for name, value in environment.items() if NAMES.search(name) and len(value) >= SHORTEST}:
        text = text.replace(value, HIDDEN)
    return SECRETS.sub(HIDDEN, text)


def redact_command(words: Sequence[str]) -> list[str]:
    """Replaces the secrets in the words of a command, and the values in NAME=VALUE with the name of a secret (api_key=...)."""
    return [ASSIGNED.sub(rf"\1={HIDDEN}", redact(word)) for word in words]


def refuse_secrets(flat: Mapping[str, Any]) -> None:
    """Refuses a config with secrets, because it is written into the run folder, which may be shared.

    Args:
        flat: values of the config by dotted name.

    Raises:
        ValueError: names each value that contains a secret, without the secret.
    """
    if found := [name for name, value in flat.items() if redact(str(value)) != str(value)]:
        raise ValueError(
            f"{', '.join(found)} holds what looks like a password or an access token, and a run's config is saved; "
            "log in instead (hf auth login), or set HF_TOKEN in the environment"
        )


class Redacting(logging.Filter):
    """Removes secrets from the log messages of all libraries, except from tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redacts the message; no message is dropped."""
        said = record.getMessage()
        if (clean := redact(said)) != said:
            record.msg, record.args = clean, ()
        return True
