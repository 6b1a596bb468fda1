"""A real S3 server of this process, moto's: it can be stopped and started again with what it has, and deny keys."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fleets import free_port

from server.storage.aws_settings import AwsSettings

REGION, KEY, SECRET = "eu-central-1", "covey-key", "covey-secret"
READING = ["s3:GetObject", "s3:ListBucket"]


class S3:
    """One server; its objects outlive a stop."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def client(self, service: str = "s3") -> Any:
        import boto3

        named = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}
        return boto3.client(service, endpoint_url=self.url, **named)

    def new_bucket(self) -> str:
        """Make a bucket; return the address of a prefix in it."""
        name = f"covey-{uuid.uuid4().hex}"
        self.client().create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        return f"s3://{name}/fleets/one"

    def objects(self, address: str) -> dict[str, bytes]:
        """Return the objects below an address, by their names below it."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        client = self.client()
        found = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
        return {
            entry["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            for entry in found
        }

    def write(self, address: str, name: str, data: bytes) -> None:
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self.client().put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)

    def settings(self, key: str = KEY, secret: str = SECRET) -> AwsSettings:
        return AwsSettings(REGION, self.url, key, secret)

    def environment(self) -> dict[str, str]:
        """Return what a process needs to reach it."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        return {**keys, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": self.url}

    @contextlib.contextmanager
    def only(self, actions: list[str]) -> Iterator[AwsSettings]:
        """Check permissions in this block; yields the keys of a user who may do these actions."""
        iam, name = self.client("iam"), f"user-{uuid.uuid4().hex}"
        iam.create_user(UserName=name)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        rule = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        iam.put_user_policy(UserName=name, PolicyName="some", PolicyDocument=policy)
        try:
            httpx.post(f"{self.url}/moto-api/reset-auth", content=b"0").raise_for_status()
            yield self.settings(made["AccessKeyId"], made["SecretAccessKey"])
        finally:
            httpx.post(f"{self.url}/moto-api/reset-auth", content=b"inf").raise_for_status()


@contextlib.contextmanager
def running_s3() -> Iterator[S3]:
    """Yield a running server; skip the test where moto or obstore is not installed."""
    for package, install in (("moto", "pip install 'moto[s3,server]'"), ("obstore", "pip install 'covey[s3]'")):
        pytest.importorskip(package, reason=f"{package} is not installed: {install}")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3()
    try:
        yield server
    finally:
        server.stop()
