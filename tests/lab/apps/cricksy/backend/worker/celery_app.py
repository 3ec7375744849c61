"""The Celery application: limits and concurrency are the command line's."""

import hashlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

import store
from celery import Celery, Task

import config

app = Celery("cricksy", broker=config.required("CRICKSY_CELERY_BROKER_URL"), backend=config.required("CRICKSY_CELERY_RESULT_BACKEND"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    result_expires=3600,
    broker_connection_retry_on_startup=True,
    # how long a task of a worker that is gone for good waits until another one gets it
    broker_transport_options={"visibility_timeout": int(os.environ.get("CRICKSY_VISIBILITY_SECONDS", "3600"))},
    worker_send_task_events=True,
)


@app.task(bind=True, name="cricksy.read", autoretry_for=(Exception,), max_retries=5, retry_backoff=1)
def read(self: Task, upload: str, seconds: float = 0, ocr: bool = True) -> str:
    """Fetch an image, read it, keep its text; without OCR, its sum. Doing it again comes to the same."""
    request = self.request
    execution = store.begin(upload, str(request.hostname), request.retries, bool((request.delivery_info or {}).get("redelivered")))
    time.sleep(seconds)
    with tempfile.NamedTemporaryFile(suffix=".png") as image:
        store.s3().download_fileobj(store.bucket(), f"uploads/{upload}", image)
        image.flush()
        if ocr:
            done = subprocess.run(["tesseract", image.name, "stdout", "-l", "eng"], check=True, capture_output=True, text=True)
            words = done.stdout.strip()
        else:
            words = hashlib.sha256(Path(image.name).read_bytes()).hexdigest()
    store.finish(upload, execution, words)
    return words
