"""Tidy tables, one row per observation: CSV for everybody, HDF5 with units for xarray."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

Row = Mapping[str, object]


@dataclass(frozen=True)
class Column:
    """One column. unit: an SI symbol, "1" of what has no dimension, "" of words. What a row lacks is None."""

    unit: str
    description: str

    @property
    def words(self) -> bool:
        return self.unit == ""


def write_csv(path: Path, rows: Sequence[Row], columns: Mapping[str, Column]) -> None:
    """One line per row under the names of the columns; what is None or nan stays empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            values = (row.get(name) for name in columns)
            writer.writerow("" if value is None or value != value else value for value in values)


def write_hdf5(path: Path, rows: Sequence[Row], columns: Mapping[str, Column], **attributes: str) -> None:
    """One dataset (rows,) per column, float64 with nan for None, or UTF-8 with "" for None.

    `xarray.open_dataset(path, engine="h5netcdf")` gives them along `run`, each with its units and long_name.
    attributes: of the file.
    """
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        run = file.create_dataset("run", data=np.arange(len(rows)))
        run.attrs["long_name"] = "number of the row"
        run.make_scale("run")
        for name, column in columns.items():
            values = [row.get(name) for row in rows]
            if column.words:
                data = np.array(["" if value is None else str(value) for value in values], dtype=object)
                dataset = file.create_dataset(name, data=data, dtype=h5py.string_dtype())
            else:
                data = np.array([np.nan if value is None else value for value in values], dtype=float)
                dataset = file.create_dataset(name, data=data)
                dataset.attrs["units"] = column.unit
            dataset.attrs["long_name"] = column.description
            dataset.dims[0].attach_scale(run)
