"""Secrets are not written down: access tokens, passwords in addresses, and what the environment holds under a secret's name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SECRETS = re.compile(
    r"\bhf_\w+|(?<=://)[^/@\s]+(?=@)|(?<=[a-z][a-z]:/)[^/@\s]+(?=@)"  # Hugging Face's tokens; the user part of an address
    r"|(?<=[?&])(?:[\w-]*token|sig|signature|X-Amz-[\w-]+|[\w-]*key)=[^&\s]+"  # of a signed address
    r"|(?<=Bearer )\S+|\b(?:AKIA|ghp_|github_pat_|glpat-|sk-)[\w-]{12,}",
    re.IGNORECASE,
)
NAMES = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.IGNORECASE)
SHORTEST = 8  # characters: a shorter value would hide words that are no secret


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without secrets.

    Args:
        environment: whose variables with a secret's name (HF_TOKEN, WANDB_API_KEY) count; none: this process's.
    """
    environment = os.environ if environment is None else environment
    for value in {value for name, value in environment.items() if NAMES.search(name) and len(value) >= SHORTEST}:
        text = text.replace(value, HIDDEN)
    return SECRETS.sub(HIDDEN, text)


def refuse_secrets(flat: Mapping[str, Any]) -> None:
    """Before a config is written into a run folder, which people share.

    Args:
        flat: the config's values by dotted name.

    Raises:
        ValueError: naming each that holds a secret, and not the secret.
    """
    if found := [name for name, value in flat.items() if redact(str(value)) != str(value)]:
        raise ValueError(
            f"{', '.join(found)} holds what looks like a password or an access token, and a run's config is saved; "
            "log in instead (hf auth login), or set HF_TOKEN in the environment"
        )


class Redacting(logging.Filter):
    """Takes secrets out of what is logged, tracebacks aside, whichever library logs it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets everything pass, redacted."""
        said = record.getMessage()
        if (clean := redact(said)) != said:
            record.msg, record.args = clean, ()
        return True
