"""Structured logs: one JSON object a line."""

from __future__ import annotations

import datetime as dt
import json
import logging

from cutset.printable import printable_json

_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record, with its extra values, as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline."""
        moment = dt.datetime.fromtimestamp(record.created, tz=dt.timezone.utc)
        document = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document.update((key, value) for key, value in vars(record).items() if key not in _KNOWN)
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(document, ensure_ascii=False, default=str))
