"""The object store."""

import functools
import io

from minio import Minio

from mc_bench import config


@functools.cache
def client() -> Minio:
    return Minio(
        config.required("OBJECT_STORE_DSN"),
        access_key=config.required("OBJECT_STORE_ACCESS_KEY"),
        secret_key=config.required("OBJECT_STORE_SECRET_KEY"),
        secure=config.flag("OBJECT_STORE_SECURE"),
        region="us-east-1",
    )


def put(bucket: str, name: str, content: bytes) -> None:
    """Keep an object in the bucket that INTERNAL_OBJECT_BUCKET or EXTERNAL_OBJECT_BUCKET names."""
    client().put_object(config.required(bucket), name, io.BytesIO(content), len(content))


def get(bucket: str, name: str) -> bytes:
    response = client().get_object(config.required(bucket), name)
    try:
        return response.read()
    finally:
        response.close()
        response.release_conn()
