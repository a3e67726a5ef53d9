from __future__ import annotations

import io

import pytest
from rich.console import Console

from cutset.report.text import (
    bar,
    format_bytes,
    format_count,
    format_seconds,
    print_answers,
    print_bench,
)


def _console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80, highlight=False), out


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3 TiB")],
)
def test_bytes(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (1500, "1.5 K"), (4.089e9, "4.09 G")])
def test_counts(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4e-6, "4 µs"), (0, "0 µs")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "    "), (0.5, "██  "), (1, "████"), (2, "████"), (0.28125, "█▏  ")]
)
def test_bars(share: float, text: str) -> None:
    assert bar(share, 4) == text


def test_rows_of_one_file_keep_their_full_names() -> None:
    console, out = _console()
    print_answers(console, ["a/x.png", "b/x.png"], [(("cat", 0.9),), ()])
    assert "a/x.png" in out.getvalue()
    console, out = _console()
    print_answers(console, ["a/x.png", "b/y.png"], [(("cat", 0.9),), (("dog", 0.5),)])
    assert "a/x.png" not in out.getvalue()
    assert "0.900" in out.getvalue()


def test_markup_in_a_label_is_printed_as_it_is() -> None:
    console, out = _console()
    print_answers(console, ["x.png"], [(("[bold]odd[/bold]", 1.0),)])
    assert "[bold]odd[/bold]" in out.getvalue()


def test_a_measurement_without_prediction_divides_by_nothing() -> None:
    console, out = _console()
    print_bench(
        console,
        {
            "period_s": 0.01,
            "rows_per_s": 100.0,
            "latency_s": {"p50": 0.02, "p95": 0.03, "p99": 0.04},
            "predicted_period_s": 0.0,
            "slowest_stage_alone_s": 0.008,
            "whole_model_period_s": 0.015,
            "stages": [
                {
                    "busy": 0.9,
                    "waiting": 0.1,
                    "sending": 0.01,
                    "backend": "torch",
                    "sent_bytes_per_row": 2048.0,
                }
            ],
        },
    )
    assert "1.25 times that" in out.getvalue()
    assert "100 rows/s" in out.getvalue()
