"""Uploads: PostgreSQL for what is known of them, S3 for what they are."""

import functools
from typing import Any

import boto3
import release
from botocore.config import Config
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import config


@functools.cache
def engine() -> Engine:
    """The worker's: synchronous."""
    return create_engine(config.required("DATABASE_URL"), pool_pre_ping=True, pool_size=2)


@functools.cache
def async_engine() -> AsyncEngine:
    """The API's."""
    return create_async_engine(config.required("ASYNC_DATABASE_URL"), pool_pre_ping=True, pool_size=4)


@functools.cache
def s3() -> Any:
    return boto3.client(
        "s3",
        endpoint_url=config.required("CRICKSY_S3_ENDPOINT_URL") or None,
        region_name=config.required("CRICKSY_S3_REGION"),
        aws_access_key_id=config.required("CRICKSY_S3_ACCESS_KEY"),
        aws_secret_access_key=config.required("CRICKSY_S3_SECRET_KEY"),
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def bucket() -> str:
    return config.required("CRICKSY_S3_BUCKET")


def upload_url(key: str) -> str:
    expiry = int(config.required("CRICKSY_S3_PRESIGNED_EXPIRY"))
    return s3().generate_presigned_url("put_object", Params={"Bucket": bucket(), "Key": key}, ExpiresIn=expiry)  # type: ignore[no-any-return]


def begin(upload: str, worker: str, retries: int, redelivered: bool) -> int:
    """Return the number of this execution."""
    with engine().begin() as connection:
        connection.execute(text("UPDATE upload SET state = 'running' WHERE id = :id"), {"id": upload})
        found = connection.execute(
            text(
                "INSERT INTO execution (upload, worker, version, retries, redelivered) "
                "VALUES (:id, :worker, :version, :retries, :redelivered) RETURNING id"
            ),
            {"id": upload, "worker": worker, "version": release.VERSION, "retries": retries, "redelivered": redelivered},
        )
        return int(found.scalar_one())


def finish(upload: str, execution: int, words: str) -> None:
    more = ", confidence = 1" if release.HAS_CONFIDENCE else ""
    with engine().begin() as connection:
        connection.execute(
            text(f"UPDATE upload SET state = 'done', text = :text{more} WHERE id = :id"), {"id": upload, "text": words}
        )
        connection.execute(text("UPDATE execution SET ended = now() WHERE id = :id"), {"id": execution})
