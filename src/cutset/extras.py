"""Which extra of Cutset brings which package, and what to say where one is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cutset.errors import MissingExtra

EXTRA_OF = {
    "PIL": "images",
    "torch": "torch",
    "torchvision": "torch",
    "sympy": "torch",
    "onnxscript": "torch",
    "onnx_ir": "torch",
    "timm": "timm",
    "huggingface_hub": "timm",
    "openvino": "openvino",
    "zstandard": "zstd",
    "starlette": "serve",
    "uvicorn": "serve",
    "h11": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "opentelemetry": "tracing",
    "ray": "ray",
    "altair": "report",
    "vl_convert": "report",
    "jinja2": "report",
    "markupsafe": "report",
}
"""By the name under which a package is imported; the smallest extra, where several bring it."""


def missing_extra(error: ModuleNotFoundError, what: str = "this") -> MissingExtra | None:
    """What to say of a failed import, or None where no extra would bring what is missing.

    Args:
        error: what the import raised.
        what: what needs the package, for the message.
    """
    package = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    return MissingExtra(
        f"{what} needs the package {package!r}, which is not installed: "
        f"pip install 'cutset[{extra}]'",
        package=package,
        extra=extra,
    )


@contextlib.contextmanager
def naming_extras(what: str = "this") -> Iterator[None]:
    """Turns a failed import of a package that an extra brings into words that name the extra.

    Args:
        what: what needs the package, for the message.

    Raises:
        MissingExtra: a package is missing that an extra of Cutset brings.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_extra(error, what)
        if missing is None:
            raise
        raise missing from error
