"""`Trace`: what a run records, in one HDF5 file that any netCDF-4 reader understands.

A file holds groups. A *growing* group has one unlimited dimension (steps, epochs) along which rows are
appended; a *whole* group (a transient) is written once. Every dimension has a coordinate attached as an HDF5
dimension scale and every variable its units, so that

    xarray.open_datatree("trace.h5", engine="h5netcdf")

gives named, labelled arrays. (Write seconds as "s": xarray takes "seconds" for a time span to decode.)

The file changes inside `flush`, `lengths`, `close`, `create` and `resume` only; everything else waits in
memory. So a run killed at any other moment leaves a file that opens, with all flushed rows and with variables
of equal length. Within a flush HDF5 promises nothing; but no compressed chunk is ever written twice (see
`_storage`), so that what was flushed before is not moved about. A flush that an exception broke off is made
good by the next one.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mep_sim.checkpoint import to_json

FORMAT = "mep-sim trace"
FORMAT_VERSION = 1
CHUNK_BYTES = 2**20  # what h5py caches of a dataset; a larger chunk would be unpacked anew at every touch
SMALL_ROW_BYTES = 2**12  # rows below this share a chunk
SMALL_ROWS = 1024


@dataclass(frozen=True)
class Variable:
    """What one recorded quantity is.

    Attributes:
        units: SI symbol ("S", "V", "s", "J"), "nats" and the like, or "1" for dimensionless.
        long_name: a few words for axis labels.
        dims: names of its dimensions, in a growing group those of one row.
        dtype: NumPy name of an integer or floating type.
    """

    units: str
    long_name: str = ""
    dims: tuple[str, ...] = ()
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if not self.units:
            raise ValueError("units is empty: give a unit, or '1' for a dimensionless quantity")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"dtype={self.dtype!r} is no NumPy type; try 'float64' or 'int64'") from error
        if dtype.kind not in "iuf":
            raise ValueError(f"dtype={self.dtype!r}: must be an integer or floating type")
        object.__setattr__(self, "dtype", dtype.name)
        object.__setattr__(self, "dims", tuple(self.dims))


@dataclass(frozen=True, eq=False)
class Axis:
    """A dimension of fixed size and its coordinate: `values (N,)` in `units`.

    Wherever an `Axis` is asked for, a plain size N stands for the dimensionless `0 .. N - 1`.
    """

    values: ArrayLike | Tensor
    units: str = "1"
    long_name: str = ""

    def __post_init__(self) -> None:
        values = _as_array(self.values)
        if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iuf":
            raise ValueError(
                f"an axis of shape {values.shape} and type {values.dtype}: "
                "give at least one number, in one dimension"
            )
        object.__setattr__(self, "values", values)

    def variable(self, name: str) -> Variable:
        """The coordinate as a variable along itself."""
        return Variable(self.units, self.long_name, (name,), self.values.dtype.name)


class Trace:
    """An open trace file; see the module's docstring. Use it in a `with` block, or `close` it.

        with Trace.create("trace.h5", config={"beta": 0.1}, seed=0) as trace:
            trace.declare("training", along="step", variables={"loss": Variable("nats")})
            for step in range(100):
                trace.append("training", step, {"loss": loss})
            trace.flush()

    It is had from `create`, `resume` or, for reading, `open`.
    """

    def __init__(self, file: h5py.File, groups: dict[str, _Group]) -> None:
        self._file = file
        self._groups = groups

    @classmethod
    def create(
        cls, path: str | Path, *, config: Mapping[str, object], seed: int, overwrite: bool = False
    ) -> Trace:
        """Begin a new file that says which run it belongs to.

        Root attributes: `config` (JSON), `seed`, `created` (ISO 8601, UTC), the versions of Python and of the
        libraries that decide the numbers, `format` and `format_version`.

        Raises:
            FileExistsError: the file exists, and `overwrite` is off.
            PermissionError: the folder is not writable.
            ValueError: `config` holds what JSON cannot.
        """
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seed": seed,
            "config": to_json(dict(config)),
            "python_version": platform.python_version(),
        }
        for library in ("torch", "numpy", "torchdiffeq", "mep-sim"):
            attributes[f"{library.replace('-', '_')}_version"] = _version(library)
        file = _open(Path(path), "w" if overwrite else "x")
        file.attrs.update(attributes)
        file.flush()
        return cls(file, {})

    @classmethod
    def resume(cls, path: str | Path, lengths: Mapping[str, int | None]) -> Trace:
        """Go on with a file from where a checkpoint was taken.

        Growing groups are cut to `lengths` (what `lengths()` said then); groups not in it are dropped.

        Raises:
            FileNotFoundError, PermissionError: there is no such file, or it is not writable.
            ValueError: not a trace, one of a newer format, or one that does not reach to `lengths`.
        """
        file, groups = _open_stored(Path(path), "r+")
        for name, length in lengths.items():
            stored = groups[name].length if name in groups else 0
            if name not in groups or (length is not None and stored < length):
                file.close()
                raise ValueError(
                    f"{path} holds {stored} of the {length} rows of group {name!r} in the checkpoint; "
                    "it belongs to another checkpoint: start the run anew in another folder"
                )
        for name in groups.keys() - lengths.keys():
            del file[name]
        groups = {name: groups[name] for name in groups if name in lengths}
        for name, group in groups.items():
            if group.along:
                group.resize(file[name], lengths[name])
                group.length = lengths[name]
        file.flush()
        return cls(file, groups)

    @classmethod
    def open(cls, path: str | Path) -> Trace:
        """Open for reading, also while another process is still writing: this then shows what was flushed.

        Raises:
            FileNotFoundError, PermissionError: there is no such file, or it is not readable.
            ValueError: not a trace, one of a newer format, or a damaged one.
        """
        return cls(*_open_stored(Path(path), "r"))

    # Recording

    def declare(
        self,
        group: str,
        along: str,
        variables: Mapping[str, Variable],
        dims: Mapping[str, Axis | int] | None = None,
        coordinate: Variable = Variable("1", dtype="int64"),
    ) -> None:
        """Announce a growing group.

        A resumed run may declare what the file has already, as long as it is the same.

        Args:
            group: its path, such as "training" or "conductances/layers.0.weight".
            along: name of the unlimited dimension, such as "step".
            variables: what each row holds, by name.
            dims: the fixed dimensions that `variables` name.
            coordinate: units and type of the value that places a row along `along`.

        Raises:
            ValueError: a name is bad or taken, a dimension unknown, or the group exists and differs.
        """
        if along in variables or along in (dims or {}):
            raise ValueError(
                f"group {group!r}: {along!r} names the growing dimension; use another name beside it"
            )
        if coordinate.dims:
            raise ValueError(
                f"group {group!r}: the coordinate of {along!r} has dims {coordinate.dims}; give none"
            )
        _check_name(along)
        wanted = _Group(along, {along: coordinate, **variables}, _axes(dims))
        if group in self._groups:
            if not self._groups[group].same_as(wanted):
                raise ValueError(
                    f"group {group!r} exists with other variables or dimensions; use another name"
                )
            return
        self._add(group, wanted)

    def append(self, group: str, at: float, row: Mapping[str, ArrayLike | Tensor]) -> None:
        """Add a row to a growing group, in memory until `flush`.

        Args:
            group: a declared group.
            at: the coordinate of the row, such as the step number.
            row: a value for each variable, of the shape of its `dims`; NaN is a value. Copied.

        Raises:
            ValueError: an unknown group, a missing or unknown variable, a wrong shape, or a value that the
                variable's type cannot hold (a fraction in an integer).
        """
        self._check_writable()
        if group not in self._groups or not self._groups[group].along:
            growing = sorted(name for name, g in self._groups.items() if g.along)
            raise ValueError(f"no group {group!r} to append to: declare it first; there are {growing}")
        target = self._groups[group]
        target.pending.append(target.convert(group, {**row, target.along: at}))

    def write(
        self,
        group: str,
        variables: Mapping[str, Variable],
        values: Mapping[str, ArrayLike | Tensor],
        dims: Mapping[str, Axis | int],
    ) -> None:
        """Record a whole group at once, in memory until `flush`.

        Raises:
            ValueError: as for `declare` and `append`; a whole group cannot be written twice.
        """
        if group in self._groups:
            raise ValueError(f"group {group!r} has been recorded already; use another name")
        whole = _Group("", dict(variables), _axes(dims))
        whole.pending.append(whole.convert(group, values))
        self._add(group, whole)

    def flush(self) -> None:
        """Write all that waits in memory into the file."""
        self._check_writable()
        for name, group in self._groups.items():
            group.flush(self._file, name)
        self._file.flush()

    def lengths(self) -> dict[str, int | None]:
        """Flush, and say how many rows each group has (None: a whole group). Keep this in the checkpoint."""
        self.flush()
        return {name: group.length if group.along else None for name, group in self._groups.items()}

    def close(self) -> None:
        """Flush and close; closing twice does nothing."""
        if not self._file:
            return
        try:
            if self._file.mode != "r":
                self.flush()
        finally:
            self._file.close()

    # Reading

    @property
    def metadata(self) -> dict[str, object]:
        """The root attributes; `config` is JSON."""
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self._file.attrs.items()
        }

    @property
    def groups(self) -> tuple[str, ...]:
        """The paths of all groups."""
        return tuple(sorted(self._groups))

    def read(self, group: str) -> dict[str, np.ndarray]:
        """The flushed variables and coordinates of a group, by name; rows come first.

        Raises:
            ValueError: no such group, not flushed yet, or damaged.
        """
        if group not in self._file or group not in self._groups:
            raise ValueError(f"no group {group!r} in {self._file.filename}; there are {list(self.groups)}")
        try:
            return {name: dataset[()] for name, dataset in self._file[group].items()}
        except OSError as error:
            raise ValueError(f"group {group!r} of {self._file.filename} is damaged ({error})") from error

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, name: str, group: _Group) -> None:
        self._check_writable()
        for part in name.split("/"):
            _check_name(part)
        for variable, described in group.variables.items():
            _check_name(variable)
            unknown = set(described.dims) - group.axes.keys()
            if unknown:
                raise ValueError(
                    f"variable {variable!r} of group {name!r} has unknown dimensions {sorted(unknown)}; "
                    f"give their sizes in dims, which has {sorted(group.axes)}"
                )
            if variable in group.axes:
                raise ValueError(f"group {name!r}: {variable!r} names a dimension and a variable; rename one")
        for other in self._groups:
            # To readers an inner group inherits the dimensions of the outer, which may not fit its own.
            if f"{other}/".startswith(f"{name}/") or f"{name}/".startswith(f"{other}/"):
                raise ValueError(f"group {name!r} cannot hold or lie within {other!r}; put them side by side")
        self._groups[name] = group

    def _check_writable(self) -> None:
        if not self._file or self._file.mode == "r":
            state = "open for reading" if self._file else "closed"
            raise ValueError(f"the trace is {state}: use Trace.create or Trace.resume to record")


@dataclass
class _Group:
    """A group as declared, and its rows that wait to be written."""

    along: str  # "" for a whole group
    variables: dict[str, Variable]  # with the coordinate of `along`; dims are those of a row
    axes: dict[str, Axis]
    length: int = 0  # rows in the file
    stored: bool = False
    pending: list[dict[str, np.ndarray]] = field(default_factory=list)

    def same_as(self, other: _Group) -> bool:
        def coordinates(group: _Group) -> dict[str, Variable]:
            return {name: axis.variable(name) for name, axis in group.axes.items()}

        return (
            (self.along, self.variables) == (other.along, other.variables)
            and coordinates(self) == coordinates(other)
            and all(np.array_equal(a.values, other.axes[name].values) for name, a in self.axes.items())
        )

    def convert(self, name: str, row: Mapping[str, ArrayLike | Tensor]) -> dict[str, np.ndarray]:
        """The row in the types of the file, checked and copied."""
        if row.keys() != self.variables.keys():
            missing, unknown = self.variables.keys() - row.keys(), row.keys() - self.variables.keys()
            raise ValueError(
                f"group {name!r}: missing {sorted(missing)}, unknown {sorted(unknown)}; "
                f"give a value for each of {sorted(self.variables)}"
            )
        converted = {}
        for key, variable in self.variables.items():
            value = _as_array(row[key])
            shape = self.shape(variable)
            if value.shape != shape:
                raise ValueError(f"{key!r} of group {name!r} has shape {value.shape}; declared is {shape}")
            if not np.can_cast(value.dtype, variable.dtype, casting="same_kind"):
                raise ValueError(
                    f"{key!r} of group {name!r} is {value.dtype} and declared as {variable.dtype}; "
                    "convert it, or declare another dtype"
                )
            converted[key] = value.astype(variable.dtype)  # a copy: weights change in place between flushes
        return converted

    def shape(self, variable: Variable) -> tuple[int, ...]:
        return tuple(len(self.axes[dim].values) for dim in variable.dims)

    def resize(self, group: h5py.Group, length: int) -> None:
        for key in self.variables:
            group[key].resize(length, axis=0)

    def flush(self, file: h5py.File, name: str) -> None:
        """Create the group if need be, and write the waiting rows; to be repeated safely if broken off."""
        if not self.stored:
            if name in file:
                del file[name]
            self._create(file.create_group(name))
            self.stored = True
        if not self.pending:
            return
        group, end = file[name], self.length + len(self.pending)
        if self.along:
            self.resize(group, end)
        for key in self.variables:
            if self.along:
                group[key][self.length : end] = np.stack([row[key] for row in self.pending])
            else:
                group[key][...] = self.pending[0][key]
        self.length = end
        self.pending.clear()

    def _create(self, group: h5py.Group) -> None:
        for name, axis in self.axes.items():
            dataset = group.create_dataset(name, data=axis.values)
            _describe(dataset, axis.units, axis.long_name)
            dataset.make_scale(name)
        grows = bool(self.along)
        for key, variable in self.variables.items():
            fixed = self.shape(variable)
            shape = (0, *fixed) if grows else fixed
            dataset = group.create_dataset(
                key,
                shape,
                variable.dtype,
                maxshape=(None, *fixed) if grows else None,
                **_storage(fixed, np.dtype(variable.dtype).itemsize, grows),
            )
            _describe(dataset, variable.units, variable.long_name)
            if key == self.along:
                dataset.make_scale(key)
            else:
                for axis, dim in enumerate((self.along, *variable.dims) if grows else variable.dims):
                    dataset.dims[axis].attach_scale(group[dim])
        group.attrs["along"] = self.along  # last: what lacks it is half made, and made anew


def _describe(dataset: h5py.Dataset, units: str, long_name: str) -> None:
    dataset.attrs["units"] = units
    if long_name:
        dataset.attrs["long_name"] = long_name


def _storage(fixed: tuple[int, ...], itemsize: int, grows: bool) -> dict[str, object]:
    """How HDF5 lays out a variable: compressed, in chunks that are written once.

    A compressed chunk that is written again changes its size and moves; a run killed just then loses the rows
    flushed into it earlier. So a large row has its own chunks, and small rows share one, not compressed.
    """
    if not fixed and not grows:
        return {}  # a single number has no chunks
    if grows and math.prod(fixed) * itemsize < SMALL_ROW_BYTES:
        rows = min(SMALL_ROWS, 16 * SMALL_ROW_BYTES // (math.prod(fixed) * itemsize))
        return {"chunks": (rows, *fixed)}
    chunk = list(fixed)
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        longest = chunk.index(max(chunk))
        chunk[longest] = -(-chunk[longest] // 2)
    chunks = (1, *chunk) if grows else tuple(chunk)
    return {"chunks": chunks, "compression": "gzip", "shuffle": True, "fletcher32": True}


def _stored_groups(file: h5py.File) -> Iterator[tuple[str, _Group]]:
    """The groups of a file as they were declared; those that bear the attribute `along`."""
    names = []
    file.visititems(lambda name, item: names.append(name) if "along" in item.attrs else None)
    for name in names:
        group = file[name]
        along = group.attrs["along"]
        axes, variables = {}, {}
        for key, dataset in group.items():
            units, long_name = dataset.attrs["units"], dataset.attrs.get("long_name", "")
            if dataset.is_scale and key != along:
                axes[key] = Axis(dataset[()], units, long_name)
            else:
                dims = [dim[0].name.rsplit("/", 1)[-1] for dim in dataset.dims if len(dim)]
                fixed = tuple(dim for dim in dims if dim != along)
                variables[key] = Variable(units, long_name, fixed, dataset.dtype.name)
        length = min(len(group[key]) for key in variables) if along else 0
        yield name, _Group(along, variables, axes, length, stored=True)


def _open_stored(path: Path, mode: str) -> tuple[h5py.File, dict[str, _Group]]:
    file = _open(path, mode)
    try:
        return file, dict(_stored_groups(file))
    except (OSError, KeyError, RuntimeError) as error:
        file.close()
        raise ValueError(f"{path} is damaged ({error}); start the run anew in another folder") from error


def _open(path: Path, mode: str) -> h5py.File:
    """An HDF5 file, found to be one of ours if it is not new; h5py's errors put into words."""
    try:
        # Readers take no lock, so that a run can be watched; writers do, so that no two write one file.
        file = h5py.File(path, mode, locking=mode != "r")
    except FileExistsError as error:
        raise FileExistsError(
            f"{path} exists: resume it, choose another path, or pass overwrite=True"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"cannot open {path}: no such file or folder; check the path") from error
    except PermissionError as error:
        raise PermissionError(f"no permission to open {path}; choose a folder you own") from error
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{path} is being written by another process; wait or choose another path"
        ) from error
    except OSError as error:
        if not path.is_file():
            raise OSError(f"cannot open {path}: {error}; choose another path") from error
        raise ValueError(f"{path} is no HDF5 file, is damaged, or is open here already ({error})") from error
    if mode in ("w", "x"):
        return file
    kind, version = file.attrs.get("format"), file.attrs.get("format_version", 0)
    if kind != FORMAT or version > FORMAT_VERSION:
        file.close()
        if kind != FORMAT:
            raise ValueError(f"{path} is no mep-sim trace (format {kind!r}, expected {FORMAT!r})")
        raise ValueError(
            f"{path} has format version {version}, this mep-sim knows up to {FORMAT_VERSION}; update mep-sim"
        )
    return file


def _axes(dims: Mapping[str, Axis | int] | None) -> dict[str, Axis]:
    for name in dims or {}:
        _check_name(name)
    return {
        name: axis if isinstance(axis, Axis) else Axis(np.arange(axis)) for name, axis in (dims or {}).items()
    }


def _check_name(name: str) -> None:
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"name {name!r}: give a word without '/', such as 'loss' or 'layers.0.weight'")


def _as_array(value: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(value, Tensor):
        # NumPy has no bfloat16; float32 holds all its values.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
    return np.asarray(value)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source tree
