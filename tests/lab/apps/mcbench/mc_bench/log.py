"""Logs for people (HUMANIZE_LOGS) or one JSON object a line."""

import json
import logging
import sys

from mc_bench import config, release


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "version": release.VERSION,
            "worker": config.text("WORKER_NAME"),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up() -> None:
    handler = logging.StreamHandler(sys.stdout)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(plain if config.flag("HUMANIZE_LOGS") else _Json())
    logging.basicConfig(level=config.text("LOG_LEVEL", "INFO"), handlers=[handler], force=True)
