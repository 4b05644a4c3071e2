"""The engine that runs the tables: DuckDB in this process, or Spark where logs outgrow one machine."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from moon_jax.data.policy import shown
from moon_jax.data.records import DataError

ENGINES = ("duckdb", "spark")
BATCH_ROWS = 65_536  # that the driver holds at a time
LONGEST_MESSAGE = 300  # characters of an engine's message that are passed on


@dataclasses.dataclass(frozen=True)
class Engine:
    """An open connection, and the folder where every step's result lies as Parquet.

    With Spark the folder must be one that all its machines see.
    """

    connection: Any  # an Ibis backend
    folder: pathlib.Path

    def put(self, rows: pa.Table, name: str) -> ir.Table:
        """Returns a table of what this process knows."""
        pq.write_table(rows, self.folder / name)
        return self.connection.read_parquet(str(self.folder / name))

    def stage(self, table: ir.Table, name: str) -> ir.Table:
        """Returns the table computed once and for all: later steps read the rows instead of computing them again."""
        path = self.folder / name
        table.to_parquet(str(path))
        return self.connection.read_parquet(str(path))

    def read(self, path: str) -> ir.Table:
        """Returns a Parquet file, or a folder of them, in this machine's or (Spark) the cluster's storage.

        Files of a folder may have different columns: what one lacks is null there.

        Raises:
            DataError: it cannot be read.
        """
        pattern = path
        if self.connection.name == "duckdb" and pathlib.Path(path).is_dir():
            pattern = f"{path}/**/*.parquet"
        by_name = {"union_by_name": True} if self.connection.name == "duckdb" else {"mergeSchema": True}
        with naming(path):
            return self.connection.read_parquet(pattern, **by_name)

    def batches(self, name: str) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a staged table in the order in which it was staged."""
        path = self.folder / name
        for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            with pq.ParquetFile(file) as rows:
                yield from rows.iter_batches(BATCH_ROWS)

    def close(self) -> None:
        """Ends the connection."""
        self.connection.disconnect()


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Makes a DataError that names `path` of what an engine raises when it meets what it cannot read."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each engine has its own
        said = shown((str(error).splitlines() or [type(error).__name__])[0][:LONGEST_MESSAGE])
        raise DataError(f"{path} cannot be read as Parquet: {said}") from error


def connect(engine: str, folder: pathlib.Path, memory_gb: float) -> Engine:
    """Returns a connection.

    Args:
        engine: one of ENGINES. "spark" takes the session that spark-submit set up, or starts one on this machine.
        folder: for the results of the steps; DuckDB also spills there.
        memory_gb: that DuckDB may use for its tables; the catalogue, which this process holds, comes on top.

    Raises:
        DataError: what the engine needs is not installed.
    """
    if engine == "duckdb":
        settings = {"memory_limit": f"{int(memory_gb * 1000)}MB", "temp_directory": str(folder / "spilled")}
        return Engine(ibis.duckdb.connect(**settings), folder)
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise DataError("--engine=spark needs Spark: pip install 'ibis-framework[pyspark]' and Java 17") from error
    return Engine(ibis.pyspark.connect(SparkSession.builder.appName("moon_jax.prepare").getOrCreate()), folder)
