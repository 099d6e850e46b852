"""What several commands share: how data is named, and how numbers are written."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["Count", "data_options", "data_section", "names"]


class Count(click.ParamType[int]):
    """A whole number as people write it: ``1_000_000``, ``1e6``, ``10k``, ``2M``."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        text = str(value).replace("_", "").replace(",", "").lower()
        unit = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}.get(text[-1:], 1)
        try:
            number = float(text[:-1] if unit > 1 else text) * unit
            if number != int(number):
                raise ValueError
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a whole number; 1000000, 1_000_000 and 1M are", param, ctx)
        return int(number)


def names(values: tuple[str, ...]) -> list[str] | None:
    """``--numeric a,b --numeric c`` as a list; None where the option was not given."""
    found = [name.strip() for value in values for name in value.split(",")]
    return [name for name in found if name] if values else None


_data_options = [
    click.option("--format", "format_", help="parquet, arrow, csv, tsv, libsvm; by the file's name if not given."),
    click.option("--delimiter", help="Of CSV; tab for .tsv, else comma."),
    click.option("--no-header", is_flag=True, help="The first line of CSV is data; see --columns."),
    click.option("--columns", multiple=True, help="Names of CSV columns without header: a,b,c."),
    click.option(
        "--null",
        multiple=True,
        help="Texts that stand for a missing value in CSV, as the empty field does: NA,null,?",
    ),
]


def data_options(command: Any) -> Any:
    """The options that say how files are read."""
    for option in reversed(_data_options):
        command = option(command)
    return command


def data_section(
    data: list[str],
    format_: str | None,
    delimiter: str | None,
    no_header: bool,
    columns: tuple[str, ...],
    null: tuple[str, ...],
) -> dict[str, Any]:
    """A job's section of these options."""
    return {
        "train": data,
        "format": format_,
        "delimiter": delimiter,
        "header": not no_header,
        "columns": names(columns),
        "null_values": names(null) or [],
    }
