"""Keys, region and endpoint of a bucket, from the environment variables and files that AWS' own tools read."""

from __future__ import annotations

import configparser
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, system_error

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_REGION = "us-east-1"
"""What servers beside AWS' own take, unless they are told another one."""


@dataclass(frozen=True)
class AwsSettings:
    """How a bucket is reached. What is secret is in no message, and in no text of this object.

    Attributes:
        region: of the bucket.
        endpoint: ``https://host[:port]`` of the service; None: AWS itself.
        access_key_id: None: whoever connects looks for the machine's role (EC2, ECS, web identity).
        secret_access_key: belongs to it.
        session_token: of keys that are for a while.
    """

    region: str
    endpoint: str | None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)


def aws_settings(environment: Mapping[str, str], home: Path) -> AwsSettings:
    """Return the settings; the environment goes before the files.

    The files are ``~/.aws/credentials`` and ``~/.aws/config``, or those that ``AWS_SHARED_CREDENTIALS_FILE`` and
    ``AWS_CONFIG_FILE`` name; ``AWS_PROFILE`` chooses their section.

    Args:
        environment: the environment variables.
        home: the user's home folder.

    Raises:
        ConfigError: a file cannot be read, the profile is in none of them, a key has no secret, or the endpoint has a
            user.
        StorageError: a file cannot be opened.
    """
    profile = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    name = profile or "default"
    credentials = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    config = Path(environment.get("AWS_CONFIG_FILE") or home / ".aws" / "config")
    found = _section(config, name if name == "default" else f"profile {name}") | _section(credentials, name)
    if profile is not None and not found:
        raise ConfigError(
            f"AWS_PROFILE is {profile}, and neither {credentials} nor {config} has this profile",
            "write it there, or unset AWS_PROFILE",
        )

    def setting(*names: str, key: str) -> str | None:
        return next((value for name in names if (value := environment.get(name))), None) or found.get(key)

    key_id = environment.get("AWS_ACCESS_KEY_ID")
    if key_id:  # keys of the environment and of a file do not mix
        secret, token = environment.get("AWS_SECRET_ACCESS_KEY"), environment.get("AWS_SESSION_TOKEN")
    else:
        key_id = found.get("aws_access_key_id")
        secret, token = found.get("aws_secret_access_key"), found.get("aws_session_token")
    if key_id and not secret:
        raise ConfigError(
            "the access key of the bucket has no secret", "set AWS_SECRET_ACCESS_KEY beside AWS_ACCESS_KEY_ID"
        )
    endpoint = setting("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", key="endpoint_url")
    if endpoint is not None and "@" in endpoint:
        raise ConfigError(
            f"AWS_ENDPOINT_URL (or endpoint_url in {config}) has a user or a password",
            "write https://host[:port] alone; keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return AwsSettings(
        region=setting("AWS_REGION", "AWS_DEFAULT_REGION", key="region") or _DEFAULT_REGION,
        endpoint=endpoint,
        access_key_id=key_id or None,
        secret_access_key=secret or None,
        session_token=token or None,
    )


def _section(path: Path, name: str) -> dict[str, str]:
    """Return a section of a file; empty where there is no such file or section. No value of it is in an error."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise system_error(error) from error
    except (configparser.Error, UnicodeDecodeError):  # their texts quote the file's lines
        raise ConfigError(
            f"{path} is no file of AWS settings", "write [default] and lines NAME = VALUE, as aws configure does"
        ) from None
    return dict(parser[name]) if parser.has_section(name) else {}
